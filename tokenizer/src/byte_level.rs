//! Bytes as characters, in the way that GPT-2 began and `tokenizer.json` has: printable bytes of Latin-1 are themselves, the others are the characters
//! from U+0100 on, in their order.

const TO_CHARACTER: [char; 256] = {
    let mut characters = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        let printable = matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
        let code_point = if printable { byte as u32 } else { next };
        if !printable {
            next += 1;
        }
        characters[byte] = match char::from_u32(code_point) {
            Some(character) => character,
            None => unreachable!(),
        };
        byte += 1;
    }
    characters
};

/// The byte of each character below U+0144, or a number above all bytes.
const TO_BYTE: [u16; 0x144] = {
    let mut bytes = [u16::MAX; 0x144];
    let mut byte = 0;
    while byte < 256 {
        bytes[TO_CHARACTER[byte] as usize] = byte as u16;
        byte += 1;
    }
    bytes
};

/// The characters of bytes.
pub fn to_text(bytes: &[u8]) -> String {
    bytes.iter().map(|&byte| TO_CHARACTER[byte as usize]).collect()
}

/// The bytes of characters; none if one of them stands for no byte.
pub fn to_bytes(text: &str) -> Option<Vec<u8>> {
    text.chars()
        .map(|character| u8::try_from(*TO_BYTE.get(character as usize)?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back() {
        let all: Vec<u8> = (0..=255).collect();
        let text = to_text(&all);
        assert_eq!(text.chars().count(), 256);
        assert_eq!(to_bytes(&text), Some(all));
        assert_eq!(to_text(b" \n!a\xad"), "\u{120}\u{10a}!a\u{143}");
        for other in [" ", "\n", "\u{ad}", "\u{144}", "\u{4f60}"] {
            assert_eq!(to_bytes(other), None);
        }
    }
}
