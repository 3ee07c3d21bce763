//! The split of [`split`](crate::split), 64 bytes at a time.
//!
//! Every byte of a block is a bit in a few words, one word for each class of characters, and the rules are arithmetic on these words: where a chunk
//! begins depends on what stands before it, and in white space on the character after it. So the work for a block does not depend on how many chunks
//! begin there, and has next to no branches.
//!
//! A pattern that is matched from left to right has no memory of what is before a chunk's beginning. A scan can therefore begin at any chunk, and what
//! is rare (numbers and white space beyond ASCII, invalid UTF-8, the long s) is left to the plain split, after which the scan begins anew.

use crate::split::{contraction, decode, first_chunk};
use crate::unicode::Class;

/// Bytes in a block: one word has a bit for each.
const BLOCK: usize = 64;

/// Room that [`Scanner::fill`] needs for one block and for what the plain split does in its place.
pub(crate) const MARGIN: usize = 3 * BLOCK;

/// Which bytes of a block are what; ASCII only, but for `high`.
#[derive(Clone, Copy)]
struct Classes {
    letter: u64,
    number: u64,
    /// White space, newlines included.
    space: u64,
    /// `\n` and `\r`.
    newline: u64,
    /// The space character itself.
    blank: u64,
    apostrophe: u64,
    /// Bytes of characters beyond ASCII.
    high: u64,
}

/// Instructions of a processor that tell the bytes of a block apart.
trait Isa {
    /// # Safety
    ///
    /// The processor has the instructions.
    unsafe fn classes(block: &[u8; BLOCK]) -> Classes;

    /// Appends the positions of the bits to `out`, each plus `base`, and says how many there are.
    ///
    /// # Safety
    ///
    /// The processor has the instructions, and `out` has room for [`BLOCK`] values.
    unsafe fn positions(bits: u64, base: u32, out: *mut u32) -> usize;
}

/// No instructions in particular.
struct Plain;

impl Isa for Plain {
    #[inline(always)]
    unsafe fn classes(block: &[u8; BLOCK]) -> Classes {
        let mut classes = Classes {
            letter: 0,
            number: 0,
            space: 0,
            newline: 0,
            blank: 0,
            apostrophe: 0,
            high: 0,
        };
        for (at, &byte) in block.iter().enumerate() {
            let bit = 1 << at;
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' => classes.letter |= bit,
                b'0'..=b'9' => classes.number |= bit,
                b' ' => {
                    classes.space |= bit;
                    classes.blank |= bit;
                }
                b'\n' | b'\r' => {
                    classes.space |= bit;
                    classes.newline |= bit;
                }
                b'\t' | 0x0B | 0x0C => classes.space |= bit,
                b'\'' => classes.apostrophe |= bit,
                0x80.. => classes.high |= bit,
                _ => {}
            }
        }
        classes
    }

    #[inline(always)]
    unsafe fn positions(mut bits: u64, base: u32, out: *mut u32) -> usize {
        let count = bits.count_ones() as usize;
        let mut at = 0;
        while at < count {
            // More than there are, so that the number of rounds rarely changes. What is written beyond the last is overwritten or not read.
            for step in at..at + 16 {
                // SAFETY: below 64, for `at` is a multiple of 16 below 64.
                unsafe { out.add(step).write(base.wrapping_add(bits.trailing_zeros())) };
                bits &= bits.wrapping_sub(1);
            }
            at += 16;
        }
        count
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Classes, Isa, Plain, BLOCK};

    /// AVX2, BMI1, LZCNT and POPCNT.
    pub struct Avx2;

    impl Isa for Avx2 {
        #[inline(always)]
        unsafe fn classes(block: &[u8; BLOCK]) -> Classes {
            // SAFETY: the processor has AVX2, as the caller promises, and both halves lie within the block.
            unsafe {
                let halves = [
                    _mm256_loadu_si256(block.as_ptr().cast()),
                    _mm256_loadu_si256(block.as_ptr().add(32).cast()),
                ];
                let bits = |of: [__m256i; 2]| {
                    u64::from(_mm256_movemask_epi8(of[0]) as u32) | u64::from(_mm256_movemask_epi8(of[1]) as u32) << 32
                };
                let equal = |byte: u8| halves.map(|half| _mm256_cmpeq_epi8(half, _mm256_set1_epi8(byte as i8)));
                // Bytes from `first` on, `length` of them, of what stands in `of`.
                let range = |of: __m256i, first: u8, length: u8| {
                    let from_zero = _mm256_sub_epi8(of, _mm256_set1_epi8(first as i8));
                    let last = _mm256_set1_epi8((length - 1) as i8);
                    _mm256_cmpeq_epi8(_mm256_min_epu8(from_zero, last), from_zero)
                };
                let lower = halves.map(|half| _mm256_or_si256(half, _mm256_set1_epi8(0x20)));
                let blank = bits(equal(b' '));
                Classes {
                    letter: bits(lower.map(|half| range(half, b'a', 26))),
                    number: bits(halves.map(|half| range(half, b'0', 10))),
                    space: blank | bits(halves.map(|half| range(half, b'\t', 5))),
                    newline: bits(equal(b'\n')) | bits(equal(b'\r')),
                    blank,
                    apostrophe: bits(equal(b'\'')),
                    high: bits(halves),
                }
            }
        }

        #[inline(always)]
        unsafe fn positions(bits: u64, base: u32, out: *mut u32) -> usize {
            // SAFETY: as promised by the caller.
            unsafe { Plain::positions(bits, base, out) }
        }
    }

    /// AVX-512 with byte instructions and VBMI2.
    pub struct Avx512;

    impl Isa for Avx512 {
        #[inline(always)]
        unsafe fn classes(block: &[u8; BLOCK]) -> Classes {
            // SAFETY: the processor has AVX-512BW, as the caller promises.
            unsafe {
                let bytes = _mm512_loadu_si512(block.as_ptr().cast());
                let equal = |byte: u8| _mm512_cmpeq_epi8_mask(bytes, _mm512_set1_epi8(byte as i8));
                let range = |of: __m512i, first: u8, length: u8| {
                    let from_zero = _mm512_sub_epi8(of, _mm512_set1_epi8(first as i8));
                    _mm512_cmplt_epu8_mask(from_zero, _mm512_set1_epi8(length as i8))
                };
                let blank = equal(b' ');
                Classes {
                    letter: range(_mm512_or_si512(bytes, _mm512_set1_epi8(0x20)), b'a', 26),
                    number: range(bytes, b'0', 10),
                    space: blank | range(bytes, b'\t', 5),
                    newline: equal(b'\n') | equal(b'\r'),
                    blank,
                    apostrophe: equal(b'\''),
                    high: _mm512_movepi8_mask(bytes),
                }
            }
        }

        #[inline(always)]
        unsafe fn positions(bits: u64, base: u32, out: *mut u32) -> usize {
            // SAFETY: the processor has AVX-512F and VBMI2, and `out` has room for 64 values, as the caller promises.
            unsafe {
                let numbers = _mm512_loadu_si512(NUMBERS.as_ptr().cast());
                let packed = _mm512_maskz_compress_epi8(bits, numbers);
                let base = _mm512_set1_epi32(base as i32);
                let put = |quarter: __m128i, at: usize| {
                    let positions = _mm512_add_epi32(_mm512_cvtepu8_epi32(quarter), base);
                    _mm512_storeu_si512(out.add(at).cast(), positions);
                };
                let count = bits.count_ones() as usize;
                put(_mm512_extracti32x4_epi32::<0>(packed), 0);
                put(_mm512_extracti32x4_epi32::<1>(packed), 16);
                if count > 32 {
                    put(_mm512_extracti32x4_epi32::<2>(packed), 32);
                    put(_mm512_extracti32x4_epi32::<3>(packed), 48);
                }
                count
            }
        }
    }

    static NUMBERS: [u8; BLOCK] = {
        let mut numbers = [0; BLOCK];
        let mut at = 0;
        while at < BLOCK {
            numbers[at] = at as u8;
            at += 1;
        }
        numbers
    };
}

/// What is known of the bytes before a block. All zero at the beginning of a chunk.
#[derive(Clone, Copy, Default)]
struct Carry {
    /// What the last byte is, each 0 or 1; names as in [`step`].
    letter: u64,
    other: u64,
    blank: u64,
    white: u64,
    white_newline: u64,
    white_other: u64,
    taken: u64,
    start: u64,
    /// The next character may have the one before it in its chunk, if it is a letter.
    after_prefix: u64,
    /// How many numbers the last chunk has so far, if it ends in one.
    numbers: u32,
    /// Where in this block chunks begin because a contraction has ended.
    after_contraction: u64,
    /// A character that has not ended: how many bytes of it are in this block, and whether it is a letter.
    open: u32,
    open_letter: bool,
}

/// `bits` one byte further on.
#[inline(always)]
fn next(bits: u64, carry: u64) -> u64 {
    bits << 1 | carry
}

/// [`Scanner::fill`] for a text, with the instructions of one processor.
type Fill = unsafe fn(&[u8], usize, &mut [u32]) -> (usize, bool);

/// Finds where chunks begin.
pub(crate) struct Scanner<'a> {
    text: &'a [u8],
    fill: Fill,
}

impl<'a> Scanner<'a> {
    #[inline]
    pub(crate) fn new(text: &'a [u8]) -> Scanner<'a> {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512() {
                return Scanner {
                    text,
                    fill: fill_avx512,
                };
            }
            if avx2() {
                return Scanner { text, fill: fill_avx2 };
            }
        }
        Scanner { text, fill: fill_plain }
    }

    /// Writes where chunks begin, from the one at `from` on, to `starts`, counted from `from`, and says how many there are, at least two: the last
    /// one is the end of the last chunk, where the next call is to begin.
    ///
    /// `from` is the beginning of a chunk and not the end of the text; `starts` has room for more than [`MARGIN`].
    #[inline]
    pub(crate) fn fill(&self, from: usize, starts: &mut [u32]) -> (usize, bool) {
        assert!(starts.len() > MARGIN);
        // SAFETY: `new` made sure that the processor has the instructions.
        unsafe { (self.fill)(self.text, from, starts) }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn avx2() -> bool {
    use std::is_x86_feature_detected as has;
    has!("avx2") && has!("bmi1") && has!("lzcnt") && has!("popcnt")
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn avx512() -> bool {
    use std::is_x86_feature_detected as has;
    avx2() && has!("avx512bw") && has!("avx512vbmi2")
}

unsafe fn fill_plain(text: &[u8], from: usize, starts: &mut [u32]) -> (usize, bool) {
    // SAFETY: these are no instructions in particular.
    unsafe { fill::<Plain>(text, from, starts) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,lzcnt,popcnt")]
unsafe fn fill_avx2(text: &[u8], from: usize, starts: &mut [u32]) -> (usize, bool) {
    // SAFETY: the caller promises the instructions.
    unsafe { fill::<x86::Avx2>(text, from, starts) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bw,avx512vbmi2,bmi1,lzcnt,popcnt")]
unsafe fn fill_avx512(text: &[u8], from: usize, starts: &mut [u32]) -> (usize, bool) {
    // SAFETY: the caller promises the instructions.
    unsafe { fill::<x86::Avx512>(text, from, starts) }
}

/// See [`Scanner::fill`].
///
/// # Safety
///
/// The processor has the instructions.
#[inline(always)]
unsafe fn fill<I: Isa>(text: &[u8], from: usize, starts: &mut [u32]) -> (usize, bool) {
    // Positions have 32 bits. A chunk that is longer is left to the plain split.
    let reach = text.len().min(from + (1 << 31));
    let mut carry = Carry::default();
    let mut count = 0;
    let mut base = from;
    while base + BLOCK <= reach {
        if count + MARGIN > starts.len() {
            return (count, false);
        }
        let block = text[base..base + BLOCK].try_into().expect("a block");
        // SAFETY: the caller promises the instructions.
        let Some(bits) = (unsafe { step::<I>(text, block, base, !0, &mut carry) }) else {
            return plainly(text, from, base + BLOCK, starts, count);
        };
        // A bit stands for the byte before: whether a chunk begins there may depend on this one.
        let position = ((base - from) as u32).wrapping_sub(1);
        // SAFETY: the caller promises the instructions; there is room for a block.
        count += unsafe { I::positions(bits, position, starts.as_mut_ptr().add(count)) };
        base += BLOCK;
    }
    if reach < text.len() {
        return plainly(text, from, reach, starts, count);
    }
    // What is left, and nothing after it: the byte beyond the end is of no class.
    let left = text.len() - base;
    let mut block = [0; BLOCK];
    block[..left].copy_from_slice(&text[base..]);
    let valid = (1 << left) - 1;
    // SAFETY: as before.
    let Some(bits) = (unsafe { step::<I>(text, &block, base, valid, &mut carry) }) else {
        return plainly(text, from, text.len(), starts, count);
    };
    let position = ((base - from) as u32).wrapping_sub(1);
    // SAFETY: as before.
    count += unsafe { I::positions(bits, position, starts.as_mut_ptr().add(count)) };
    starts[count] = (text.len() - from) as u32;
    (count + 1, false)
}

/// What [`fill`] does where a scan is of no use: the plain split, from the last known beginning to the first one at `until` or after it.
#[cold]
fn plainly(text: &[u8], from: usize, until: usize, starts: &mut [u32], mut count: usize) -> (usize, bool) {
    if count == 0 {
        starts[0] = 0;
        count = 1;
    }
    let mut at = from + starts[count - 1] as usize;
    while at < until {
        at += first_chunk(&text[at..]);
        match u32::try_from(at - from) {
            Ok(position) => starts[count] = position,
            // A chunk of more than 4 GB.
            Err(_) => break,
        }
        count += 1;
    }
    (count, true)
}

/// Where chunks begin in a block: bit i stands for byte i - 1, since what follows white space decides where its last chunk begins. None if the block has
/// something that is left to the plain split. Of `block`, which begins at `base` of the text, only the bytes in `valid` are there; what follows them, if
/// any do not, is the end of the text.
#[inline(always)]
unsafe fn step<I: Isa>(text: &[u8], block: &[u8; BLOCK], base: usize, valid: u64, carry: &mut Carry) -> Option<u64> {
    // SAFETY: the caller promises the instructions.
    let Classes {
        mut letter,
        number,
        space,
        newline,
        blank,
        apostrophe,
        high,
    } = unsafe { I::classes(block) };
    let was = *carry;

    // All bytes of a character have its class. `inner` are those but the first.
    let mut inner = 0;
    (carry.open, carry.open_letter) = (0, false);
    if high != 0 {
        (letter, inner) = beyond_ascii(text, base, letter, high, &was, carry)?;
    }
    let other = !(letter | number | space) & valid;

    // Newlines after what is neither letter, number nor white space are taken by its chunk; the rest of white space is `white`.
    let after_other = next(other, was.other);
    let first_taken = newline & (after_other | was.taken);
    let taken = newline & !newline.wrapping_add(first_taken);
    let white = space & !taken;
    let white_newline = newline & !taken;
    let white_other = white & !newline;

    let mut starts = was.after_contraction | white & !next(white, was.white);
    let apart = !white & next(white_other, was.white_other) & valid;
    let after_newline = white_other & next(white_newline, was.white_newline);
    if after_newline != 0 {
        starts |= last_lines(text, base, valid, white_other, newline, after_newline)?;
    }

    let other_start = other & !after_other & !next(blank, was.blank);
    let (sum, beyond) = next(other_start, was.after_prefix).overflowing_add(inner);
    let after_prefix = sum & !inner;
    let letter_start = letter & !next(letter, was.letter) & !next(white_other, was.white_other) & !after_prefix;
    starts |= other_start | letter_start;

    carry.numbers = 0;
    if number != 0 {
        starts |= numbers(number, was.numbers, &mut carry.numbers);
    }

    carry.after_contraction = 0;
    let mut apostrophes = other_start & apostrophe;
    while apostrophes != 0 {
        let at = apostrophes.trailing_zeros();
        if let Some(length) = contraction(&text[base + at as usize..]) {
            let end = u128::from(1u8) << (at + length as u32);
            starts |= end as u64;
            carry.after_contraction |= (end >> 64) as u64;
        }
        apostrophes &= apostrophes - 1;
    }
    starts &= valid;

    carry.letter = letter >> 63;
    carry.other = other >> 63;
    carry.blank = blank >> 63;
    carry.white = white >> 63;
    carry.white_newline = white_newline >> 63;
    carry.white_other = white_other >> 63;
    carry.taken = taken >> 63;
    carry.start = starts >> 63;
    carry.after_prefix = other_start >> 63 | u64::from(beyond);
    Some(next(starts, was.start) | apart)
}

/// The letters of a block with those beyond ASCII, and which bytes are not the first of their character. None if there is what is rare.
fn beyond_ascii(
    text: &[u8],
    base: usize,
    mut letter: u64,
    mut high: u64,
    was: &Carry,
    carry: &mut Carry,
) -> Option<(u64, u64)> {
    let mut inner = (1 << was.open) - 1;
    if was.open_letter {
        letter |= inner;
    }
    high &= !inner;
    while high != 0 {
        let at = high.trailing_zeros();
        let (Some(code_point), length) = decode(&text[base + at as usize..]) else {
            return None;
        };
        let length = length as u32;
        let bytes = ((1 << length) - 1) << at;
        let is_letter = match Class::of(code_point) {
            Class::Letter => true,
            Class::Other => false,
            Class::Number | Class::Space => return None,
        };
        if is_letter {
            letter |= bytes;
        }
        inner |= bytes & (bytes - 1);
        high &= !bytes;
        if at + length > BLOCK as u32 {
            (carry.open, carry.open_letter) = (at + length - BLOCK as u32, is_letter);
        }
    }
    Some((letter, inner))
}

/// Which of the bytes after a newline within white space begin a chunk: those with no further newline in it, unless it ends the text.
#[inline(always)]
fn last_lines(text: &[u8], base: usize, valid: u64, white_other: u64, newline: u64, after_newline: u64) -> Option<u64> {
    let (sum, beyond) = white_other.overflowing_add(after_newline);
    let ends = sum & !white_other;
    if !beyond && ends & (newline | !valid) == 0 {
        return Some(after_newline);
    }
    last_lines_one_by_one(text, base, after_newline)
}

#[cold]
fn last_lines_one_by_one(text: &[u8], base: usize, mut after_newline: u64) -> Option<u64> {
    let mut starts = 0;
    while after_newline != 0 {
        let at = after_newline.trailing_zeros();
        let rest = &text[base + at as usize..];
        let end = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | 0x0B | 0x0C));
        match end.map(|end| rest[end]) {
            None | Some(b'\n' | b'\r') => {}
            // Perhaps more white space.
            Some(0x80..) => return None,
            Some(_) => starts |= 1 << at,
        }
        after_newline &= after_newline - 1;
    }
    Some(starts)
}

/// Where chunks of numbers begin: at every third number of a run. `before` are in the last chunk already, `after` are in the one that ends the block.
#[inline(always)]
fn numbers(number: u64, before: u32, after: &mut u32) -> u64 {
    let long = number & number << 1 & number << 2 & number << 3;
    if long == 0 && (before == 0 || number & 1 == 0) {
        *after = number.leading_ones();
        return number & !(number << 1);
    }
    let (mut starts, mut count) = (0, before);
    for at in 0..BLOCK {
        if number >> at & 1 == 0 {
            count = 0;
            continue;
        }
        if count % 3 == 0 {
            starts |= 1 << at;
            count = 0;
        }
        count += 1;
    }
    *after = count;
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::split::chunks;

    fn scanners(text: &[u8]) -> Vec<Scanner<'_>> {
        let mut all = vec![Scanner { text, fill: fill_plain }];
        #[cfg(target_arch = "x86_64")]
        {
            if avx2() {
                all.push(Scanner { text, fill: fill_avx2 });
            }
            if avx512() {
                all.push(Scanner {
                    text,
                    fill: fill_avx512,
                });
            }
        }
        all
    }

    fn ends(scanner: &Scanner<'_>, starts: &mut [u32]) -> Vec<usize> {
        let (mut ends, mut from) = (Vec::new(), 0);
        while from < scanner.text.len() {
            let (count, _) = scanner.fill(from, starts);
            assert!(count >= 2 && starts[0] == 0);
            ends.extend(starts[1..count].iter().map(|&end| from + end as usize));
            from += starts[count - 1] as usize;
        }
        ends
    }

    #[track_caller]
    fn check(text: &[u8], starts: &mut [u32]) {
        let mut at = 0;
        let expected: Vec<usize> = chunks(text)
            .map(|chunk| {
                at += chunk.len();
                at
            })
            .collect();
        for (isa, scanner) in scanners(text).iter().enumerate() {
            let found = ends(scanner, starts);
            assert!(
                found == expected,
                "isa {isa}, {:?}: {found:?} {expected:?}",
                String::from_utf8_lossy(text)
            );
        }
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 33) as usize) % limit
        }
    }

    #[test]
    fn scans_as_the_plain_split_does() {
        const PIECES: [&[u8]; 64] = [
            b"a",
            b"b",
            b"word",
            b"Word",
            b"longerword",
            b"averyveryverylongwordthatgoesonandonandonandonandonandonandonandon",
            b" ",
            b" ",
            b" ",
            b" the",
            b"  ",
            b"   ",
            b"\n",
            b"\n\n",
            b"\r\n",
            b"\n ",
            b"\n    ",
            b" \n",
            b"\t",
            b"\x0b",
            b"\x0c",
            b"                                                                            ",
            b"'",
            b"'s",
            b"'ll",
            b"'VE",
            b"'re",
            b"'d",
            b"'x",
            b"''",
            b"n't",
            b"'\xc5\xbf",
            b"\xc5\xbf",
            b"1",
            b"22",
            b"333",
            b"4444",
            b"55555555555555555555555555555555555555555555555555555555555555555555555",
            b"0x1F",
            b"!",
            b"...",
            b"\"",
            b"\".\n\n",
            b"!\n \n",
            b"--",
            b"$",
            b"\0",
            b"\xc3\xa9",
            b"\xe2\x80\x9c",
            b"\xe2\x80\x9d\n",
            b"\xe4\xbd\xa0",
            b"\xd0\x9f\xd1\x80",
            b"\xf0\x9f\x98\x80",
            b"e\xcc\x81",
            b"\xc2\xa0",
            b"\xe3\x80\x80",
            b"\xc2\xb2",
            b"\xd9\xa1",
            b"\xff",
            b"\xe2\x82",
            b"\xc3",
            b"\xed\xa0\x80",
            b"\xe2\x80\xa8",
            b"<|endoftext|>",
        ];
        let mut random = Random(1);
        let mut starts = vec![0; 2 * MARGIN];
        for round in 0..60_000 {
            // Some texts are ASCII, some UTF-8, some anything.
            let kinds = [47, 54, 58, 64][round % 4];
            let length = random.below([6, 30, 120][round % 3]);
            let text: Vec<u8> = (0..length)
                .flat_map(|_| PIECES[random.below(kinds)].iter().copied())
                .collect();
            check(&text, &mut starts);
        }
    }

    #[test]
    fn every_pair_of_bytes_at_the_edge_of_blocks() {
        let mut starts = vec![0; 2 * MARGIN];
        for padding in [b"a", b" ", b"!", b"1", b"\n"] {
            for (first, second) in (0..=255u8).flat_map(|first| (0..=255u8).map(move |second| (first, second))) {
                if first % 4 > 0 && first >= 0x80 && second % 8 > 0 {
                    continue;
                }
                let mut text = padding.repeat(62 + (first as usize ^ second as usize) % 3);
                text.extend([first, second]);
                text.extend_from_slice(if first % 2 == 0 { b"x y" } else { b" \n" });
                check(&text, &mut starts);
            }
        }
    }

    #[test]
    fn every_character_at_every_place_of_a_block() {
        let mut starts = vec![0; 2 * MARGIN];
        for code_point in (0..=0x10FFFF).filter_map(char::from_u32) {
            let at = code_point as usize % 67;
            let text = format!(
                "{}{code_point}{code_point}s 'll{code_point}\n {code_point}",
                "a ".repeat(at).get(..at).unwrap()
            );
            check(text.as_bytes(), &mut starts);
        }
    }
}
