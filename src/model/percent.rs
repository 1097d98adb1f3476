//! Percent-encoding: how a query of a URL carries any text (RFC 3986 section 2.1).

use std::fmt::Write as _;

/// Returns `text` as one part of a query. Each byte that is not unreserved (RFC 3986 section 2.3) is written as its number.
#[must_use]
pub fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // A `String` can always be written to.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

/// Reads one part of a path. None if a `%` does not begin the number of a byte, or if the bytes are no text.
#[must_use]
pub fn decoded(part: &str) -> Option<String> {
    let mut bytes = part.bytes();
    let mut text = Vec::with_capacity(part.len());
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let high = digit(bytes.next()?)?;
            let low = digit(bytes.next()?)?;
            text.push((high << 4) | low);
        } else {
            text.push(byte);
        }
    }
    String::from_utf8(text).ok()
}

/// Reads one part of a query, in which forms write a space as `+`.
#[must_use]
pub fn decoded_of_query(part: &str) -> Option<String> {
    decoded(&part.replace('+', "%20"))
}

fn digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_part_is_read_as_programs_write_it_and_a_broken_one_is_refused() {
        let filter = "%7B%22label%22%3A%5B%22a%3Db+c%22%5D%7D";
        let read = decoded_of_query(filter);
        assert_eq!(read.as_deref(), Some(r#"{"label":["a=b c"]}"#));
        assert_eq!(decoded("a+b").as_deref(), Some("a+b"));
        for broken in ["%", "%2", "%g0", "%+1", "a%ff"] {
            assert_eq!(decoded(broken), None, "{broken}");
        }
    }

    proptest! {
        #[test]
        fn each_text_is_read_as_it_was_written(text in ".{0,40}") {
            let written = encoded(&text);
            prop_assert!(written.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%".contains(&b)));
            prop_assert_eq!(decoded(&written), Some(text.clone()));
            prop_assert_eq!(decoded_of_query(&written), Some(text));
        }
    }
}
