//! Base 32 of RFC 4648 §6 in lower case, without padding: device ids in certificates.

const DIGITS: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// Five bits a digit, the last digit filled with zero bits: 52 digits for 32 bytes.
#[must_use]
pub fn lower(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(5) * 8);
    let (mut bits, mut count) = (0u32, 0);
    for byte in bytes {
        bits = bits << 8 | u32::from(*byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(DIGITS[(bits >> count & 31) as usize] as char);
        }
        bits &= (1 << count) - 1;
    }
    if count > 0 {
        text.push(DIGITS[(bits << (5 - count) & 31) as usize] as char);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::lower;

    #[test]
    fn vectors_of_rfc_4648_hold() {
        for (bytes, text) in [
            ("", ""),
            ("f", "my"),
            ("fo", "mzxq"),
            ("foo", "mzxw6"),
            ("foob", "mzxw6yq"),
            ("fooba", "mzxw6ytb"),
            ("foobar", "mzxw6ytboi"),
        ] {
            assert_eq!(lower(bytes.as_bytes()), text);
        }
        assert_eq!(lower(&[0xff; 32]).len(), 52);
    }
}
