//! The mask of a client's frames (RFC 6455 section 5.3): XOR with four bytes, again and again. Masking and unmasking are the same.

/// XORs `bytes` in place. `phase` says how many bytes of the same payload came before, as a frame may come in pieces.
///
/// Sixteen bytes at a time, which compilers turn into vector instructions.
///
/// ```
/// let mut bytes = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
/// shardcast::proto::ws::mask::unmask(&mut bytes, [0x37, 0xfa, 0x21, 0x3d], 0);
/// assert_eq!(&bytes, b"Hello");
/// ```
#[inline]
pub fn unmask(bytes: &mut [u8], mask: [u8; 4], phase: usize) {
    let mut key = mask;
    key.rotate_left(phase & 3);
    // Four copies of the key side by side, in memory order whatever the endianness.
    let wide = u128::from(u32::from_ne_bytes(key)) * 0x0000_0001_0000_0001_0000_0001_0000_0001;
    let (chunks, tail) = bytes.as_chunks_mut::<16>();
    for chunk in chunks {
        *chunk = (u128::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, key) in tail.iter_mut().zip(wide.to_ne_bytes()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unmasking_is_the_byte_loop_of_the_rfc_at_every_length_phase_and_alignment() {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let source: Vec<u8> = (0..200u32).map(|number| (number * 37 % 251) as u8).collect();
        for phase in 0..9 {
            for start in 0..16 {
                for len in 0..100 {
                    // RFC 6455 section 5.3: transformed octet i is original octet i XOR masking octet i MOD 4.
                    let expect: Vec<u8> =
                        source[start..start + len].iter().enumerate().map(|(at, byte)| byte ^ mask[(at + phase) % 4]).collect();
                    let mut bytes = source.clone();
                    unmask(&mut bytes[start..start + len], mask, phase);
                    assert_eq!(bytes[start..start + len], expect, "phase {phase}, start {start}, length {len}");
                    assert_eq!((&bytes[..start], &bytes[start + len..]), (&source[..start], &source[start + len..]), "bytes around it");
                }
            }
        }
    }
}
