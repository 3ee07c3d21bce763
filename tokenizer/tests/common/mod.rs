//! What several tests need, each of them a part of it.

#![allow(dead_code)]

/// Random numbers, the same in every run: SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// Text of pieces that tokenizers find hard.
    pub fn text(&mut self, pieces: usize) -> String {
        const PIECES: [&str; 36] = [
            "a",
            "b",
            "aa",
            "ab",
            "abc",
            "the",
            "The",
            " the",
            " ",
            "  ",
            "\n",
            "\r\n",
            "\t",
            "'",
            "'s",
            "'LL",
            "\"",
            "1",
            "22",
            "4444",
            "!",
            "...",
            "<|",
            "|>",
            "é",
            "e\u{301}",
            "ſ",
            "你好",
            "\u{3000}",
            "\u{a0}",
            "😀",
            "👩‍👩‍👧",
            "²",
            "\0",
            "\u{feff}",
            "\u{10ffff}",
        ];
        (0..pieces).map(|_| self.pick(&PIECES)).collect()
    }

    /// Bytes of which many are no UTF-8.
    pub fn bytes(&mut self, pieces: usize) -> Vec<u8> {
        const PIECES: [&[u8]; 16] = [
            b"a",
            b"ab",
            b" ",
            b"\n",
            b"'",
            b"1",
            b"!",
            b"\x80",
            b"\xbf",
            b"\xc3",
            b"\xe4\xbd",
            b"\xf0\x9f\x98",
            b"\xed\xa0\x80",
            b"\xff",
            b"\xc0\x80",
            "é😀".as_bytes(),
        ];
        let mut bytes = Vec::new();
        for _ in 0..pieces {
            match self.below(4) {
                0 => bytes.push(self.next() as u8),
                _ => bytes.extend_from_slice(self.pick(&PIECES)),
            }
        }
        bytes
    }
}
