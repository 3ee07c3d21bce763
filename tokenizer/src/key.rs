//! Short chunks as numbers.

/// A chunk of at most this many bytes has a key.
pub(crate) const WORD: usize = 16;

/// The bytes of a chunk of at most [`WORD`] bytes, filled up with 0xFF: no two chunks without a byte 0xFF at their end have the same key.
pub(crate) type Key = [u64; 2];

/// The key of an empty chunk, which no text has.
pub(crate) const NO_KEY: Key = [u64::MAX; 2];

/// By length: what fills up a key.
static FILL: [[u8; WORD]; WORD + 1] = {
    let mut fill = [[0xFF; WORD]; WORD + 1];
    let mut length = 0;
    while length <= WORD {
        let mut at = 0;
        while at < length {
            fill[length][at] = 0;
            at += 1;
        }
        length += 1;
    }
    fill
};

/// The key of the chunk of `length` bytes, at most [`WORD`], that a text begins with.
#[inline(always)]
pub(crate) fn key_of(text: &[u8], length: usize) -> Key {
    match text.first_chunk() {
        Some(bytes) => key_at(bytes, length),
        None => {
            let mut bytes = [0; WORD];
            bytes[..length].copy_from_slice(&text[..length]);
            key_at(&bytes, length)
        }
    }
}

/// The key of the chunk of the first `length` bytes.
#[inline(always)]
pub(crate) fn key_at(bytes: &[u8; WORD], length: usize) -> Key {
    let halves = |bytes: &[u8; WORD]| {
        let [first, second] = [0, 8].map(|at| bytes[at..at + 8].try_into().expect("eight bytes"));
        [u64::from_ne_bytes(first), u64::from_ne_bytes(second)]
    };
    let (key, fill) = (halves(bytes), halves(&FILL[length]));
    [key[0] | fill[0], key[1] | fill[1]]
}
