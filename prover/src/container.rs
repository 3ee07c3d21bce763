//! The layout of proof and registration files (section 6 of spec/PROTOCOL.md), and the one encoding of their bodies.

use serde::{de::DeserializeOwned, Serialize};

use crate::Error;

const VERSION: u32 = 1;
/// No honest file is larger; a claim of more is refused before anything is reserved.
const MAX_BYTES: usize = 1 << 26;

/// `magic`, version, the lengths of the parts, the parts.
pub fn write(magic: &[u8; 8], parts: &[&[u8]]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend(VERSION.to_le_bytes());
    for part in parts {
        out.extend((part.len() as u64).to_le_bytes());
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}

/// The N parts of a file.
pub fn read<'a, const N: usize>(magic: &[u8; 8], what: &str, bytes: &'a [u8]) -> Result<[&'a [u8]; N], Error> {
    let malformed = |why: &str| Err(Error::Malformed(format!("{what}: {why}")));
    if bytes.len() > MAX_BYTES {
        return malformed("too large");
    }
    if bytes.get(..8) != Some(&magic[..]) {
        return malformed("not a file of this kind");
    }
    let Some((head, mut rest)) = bytes.split_at_checked(12 + 8 * N) else {
        return malformed("truncated");
    };
    let version = u32::from_le_bytes(head[8..12].try_into().expect("four bytes"));
    if version != VERSION {
        return malformed(&format!("version {version}; this program knows {VERSION}"));
    }
    let mut parts = [&bytes[..0]; N];
    for (part, length) in parts.iter_mut().zip(head[12..].chunks_exact(8)) {
        let length = u64::from_le_bytes(length.try_into().expect("eight bytes"));
        let Some((this, after)) = usize::try_from(length).ok().and_then(|n| rest.split_at_checked(n)) else {
            return malformed("truncated");
        };
        (*part, rest) = (this, after);
    }
    if !rest.is_empty() {
        return malformed("bytes after the end");
    }
    Ok(parts)
}

pub fn encode<T: Serialize>(body: &T) -> Vec<u8> {
    postcard::to_stdvec(body).expect("plain data")
}

/// Refuses bytes after the end and any encoding but the one `encode` gives.
pub fn decode<T: Serialize + DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    let (body, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|e| Error::Malformed(format!("{what}: {e}")))?;
    if !rest.is_empty() || encode(&body) != bytes {
        return Err(Error::Malformed(format!("{what}: not in canonical form")));
    }
    Ok(body)
}
