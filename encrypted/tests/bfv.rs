//! Matrix products on ciphertexts are those on integers; what is not from the client's key or not whole is refused or is not the result.

use mamba_integer_encrypted::bfv::{answer_bytes, Client, Matrix, DEGREE};

/// Numbers that look random, the same every time.
fn numbers(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        state >> 33
    }
}

fn int8(next: &mut impl FnMut() -> u64) -> i8 {
    (next() % 255) as i8 as i16 as i8
}

fn product(w: &[i8], x: &[i64], rows: usize) -> Vec<i64> {
    (0..rows)
        .map(|r| {
            w[r * x.len()..][..x.len()]
                .iter()
                .zip(x)
                .map(|(w, x)| i64::from(*w) * x)
                .sum()
        })
        .collect()
}

#[test]
fn products_are_exact() {
    let client = Client::generate();
    let mut next = numbers(1);
    // Whole blocks, a part of one, one row, a vector that fills the polynomial.
    for (rows, columns) in [(64, 192), (45, 192), (1, 1), (7, 512), (3, 2048), (2, DEGREE)] {
        let w: Vec<i8> = (0..rows * columns)
            .map(|_| {
                if columns > 1024 {
                    (next() % 15) as i8 - 7
                } else {
                    int8(&mut next).max(-127)
                }
            })
            .collect();
        let x: Vec<i64> = (0..columns).map(|_| i64::from(int8(&mut next).max(-127))).collect();
        let matrix = Matrix::new(&w, rows, columns, 127).unwrap();
        let answer = matrix.apply(&client.encrypt(&x).unwrap()).unwrap();
        assert_eq!(answer.len(), answer_bytes(rows, columns));
        assert_eq!(
            client.decrypt(&answer, rows, columns).unwrap(),
            product(&w, &x, rows),
            "{rows} × {columns}"
        );
    }
}

#[test]
fn extremes_are_exact() {
    let client = Client::generate();
    let w = [[127i8; 512], [-127; 512]].concat();
    let matrix = Matrix::new(&w, 2, 512, 127).unwrap();
    for x in [127, -127] {
        let x = [x; 512];
        let answer = matrix.apply(&client.encrypt(&x).unwrap()).unwrap();
        assert_eq!(client.decrypt(&answer, 2, 512).unwrap(), product(&w, &x, 2));
    }
    assert!(Matrix::new(&[127; 521], 1, 521, 127)
        .err()
        .unwrap()
        .0
        .contains("beyond 2^23"));
}

#[test]
fn the_secret_key_survives_writing_and_no_other_key_decrypts() {
    let (client, other) = (Client::generate(), Client::generate());
    let w: Vec<i8> = (0..20 * 16).map(|i| (i % 251) as i8).collect();
    let x: Vec<i64> = (0..16).map(|i| i - 8).collect();
    let answer = Matrix::new(&w, 20, 16, 127)
        .unwrap()
        .apply(&client.encrypt(&x).unwrap())
        .unwrap();
    let again = Client::from_bytes(&client.to_bytes()).unwrap();
    assert_eq!(again.decrypt(&answer, 20, 16).unwrap(), product(&w, &x, 20));
    assert_ne!(other.decrypt(&answer, 20, 16).unwrap(), product(&w, &x, 20));
    assert_ne!(
        client.encrypt(&x).unwrap(),
        client.encrypt(&x).unwrap(),
        "encryption is randomised"
    );
}

#[test]
fn damage_is_refused() {
    let client = Client::generate();
    let matrix = Matrix::new(&[3; 30], 10, 3, 127).unwrap();
    let query = client.encrypt(&[1, 2, 3]).unwrap();
    let answer = matrix.apply(&query).unwrap();
    for cut in [0, 1, 100, query.len() / 2, query.len() - 1] {
        assert!(matrix.apply(&query[..cut]).is_err(), "{cut} bytes");
    }
    let mut next = numbers(2);
    for _ in 0..200 {
        // Of no byte string does the server make more than an error or an answer of the right length.
        let mut bad = query.clone();
        for _ in 0..1 + next() % 40 {
            let at = next() as usize % if next() & 1 == 0 { 64 } else { bad.len() };
            bad[at] = next() as u8;
        }
        if let Ok(answer) = matrix.apply(&bad) {
            assert_eq!(answer.len(), answer_bytes(10, 3));
        }
    }
    assert!(matrix.apply(&vec![7; 1 << 20]).is_err());
    assert!(client.decrypt(&answer[1..], 10, 3).is_err());
    assert!(client.decrypt(&[], 10, 3).is_err());
    assert!(client.decrypt(&vec![255; answer.len()], 10, 3).is_err());
    assert!(Client::from_bytes(b"no key").is_err());
    assert!(Client::from_bytes(&client.to_bytes()[1..]).is_err());
    assert!(client.encrypt(&[1 << 23]).is_err());
    assert!(Matrix::new(&[1; 6], 2, 2, 127).is_err());
}
