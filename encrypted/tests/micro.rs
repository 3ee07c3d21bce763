//! A small circuit on ciphertexts, with a recurrent state, against the same on integers; every table's whole range; damage.

use std::sync::Arc;

use mamba_integer_encrypted::micro::{answer_bytes, query_bytes, Client, Server, Session};

/// s ← max(s − 1, form[c]); the logits are 7·f(s + form) + c for tables f that visit every entry.
fn circuit() -> String {
    let decay: Vec<i64> = (-16..16).map(|s: i64| (s - 1).clamp(-8, 7)).collect();
    let odd: Vec<i64> = (-16..16).map(|s: i64| (s * s * 7 + 3 * s).rem_euclid(15) - 7).collect();
    let form = "[3,-8,7,0]";
    format!(
        r#"{{"initial":[2],"forms":[{form},[-7,7,1,-1]],"cells":[[[[0,1],[2,1]],{decay:?}],[[[3,1],[1,1]],{odd:?}],[[[2,2]],{odd:?}]],
        "fine":[1,2],"state":[3],"logits":[[[[4,7]],0],[[[4,-7],[5,3]],1],[[[5,7],[4,1]],-2],[[],-700]]}}"#
    )
}

fn plain(state: &mut i64, c: usize) -> Vec<i64> {
    let odd = |s: i64| (s * s * 7 + 3 * s).rem_euclid(15) - 7;
    let (first, second) = ([3, -8, 7, 0][c], [-7, 7, 1, -1][c]);
    *state = (*state + second - 1).clamp(-8, 7);
    let (a, b) = (odd(*state + first), odd(2 * second));
    vec![7 * a, -7 * a + 3 * b + 1, 7 * b + a - 2, -700]
}

#[test]
fn ciphertexts_give_the_integers() {
    let (client, key) = Client::generate().unwrap();
    let server = Arc::new(Server::new(&key, &circuit()).unwrap());
    assert_eq!(server.cells(), 3);
    let client = Client::from_bytes(&client.to_bytes().unwrap()).unwrap();
    let mut session = Session::new(&server);
    let mut state = 2;
    for c in [0, 1, 1, 2, 3, 0, 1, 3, 2, 2, 1, 0] {
        let query = client.encrypt(c, 4).unwrap();
        assert_eq!(query.len(), query_bytes(4));
        session.feed(&query).unwrap();
        let (logits, distance) = client.decrypt(&session.logits(), 4).unwrap();
        assert_eq!(logits, plain(&mut state, c));
        assert!(distance < 0.1, "{distance} of 0.5");
    }

    // Nothing that is not a ciphertext of this length changes the state.
    assert!(session.feed(&[0; 5]).is_err());
    assert!(session.feed(&[]).is_err());
    session.feed(&client.encrypt(3, 4).unwrap()).unwrap();
    let answer = session.logits();
    assert_eq!(client.decrypt(&answer, 4).unwrap().0, plain(&mut state, 3));
    assert!(client.decrypt(&answer[4..], 4).is_err());
    assert_eq!(answer.len(), answer_bytes(4));

    // Another's key, and damaged ones.
    let (other, _) = Client::generate().unwrap();
    let (wrong, distance) = other.decrypt(&answer, 4).unwrap();
    assert!(distance > 0.1 || wrong != client.decrypt(&answer, 4).unwrap().0);
    assert!(client.encrypt(4, 4).is_err());
    assert!(Client::from_bytes(&key[..1000]).is_err());
    assert!(Server::new(&key[..key.len() / 2], &circuit()).is_err());
    assert!(Server::new(b"", &circuit()).is_err());
}

#[test]
fn circuits_that_the_parameters_do_not_carry_are_refused() {
    let message = |from: &str, to: &str| {
        let changed = circuit().replace(from, to);
        assert_ne!(changed, circuit(), "{from}");
        Server::new(b"", &changed).err().unwrap().0
    };
    assert!(message("[[2,2]]", "[[2,3]]").contains("cell 2: its input may be"));
    assert!(message("[[0,1],[2,1]]", "[[0,32]]").contains("cell 0 reads what it cannot"));
    assert!(message("[[0,1],[2,1]]", "[[3,1]]").contains("cell 0 reads what it cannot"));
    assert!(message("[[2,2]]", "[[4,1]]").contains("cell 2 reads what it cannot"));
    assert!(message("[[4,7]],0", "[[3,7]],0").contains("logit 0 reads what it cannot"));
    assert!(message("-700", "2048").contains("logit 3 is too large"));
    assert!(message("\"state\":[3]", "\"state\":[9]").contains("state is damaged"));
    assert!(message("\"state\":[3]", "\"state\":[4]").contains("logit's value"));
    assert!(message("[3,-8,7,0]", "[3,-8,70,0]").contains("outside -16"));
    assert!(message("[3,-8,7,0]", "[3,-8,7]").contains("wrong length"));
    assert!(message("\"fine\"", "\"rough\"").contains("circuit is damaged"));
}
