//! Long documents on the wire: compressed, and read back up to a bound.

use std::io::{Read as _, Write as _};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

/// What `Content-Encoding` and `Accept-Encoding` call it.
pub const NAME: &str = "gzip";

/// Compresses, rather fast than well.
#[must_use]
pub fn pack(plain: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 3), Compression::fast());
    encoder.write_all(plain).expect("INVARIANT: writing to a vector does not fail");
    encoder.finish().expect("INVARIANT: writing to a vector does not fail")
}

/// What was packed, if it is at most `max` bytes long: a few kilobytes can stand for gigabytes.
///
/// # Errors
///
/// In words: it is longer, damaged, or was cut.
pub fn unpack(packed: &[u8], max: usize) -> Result<Vec<u8>, String> {
    let mut plain = Vec::new();
    let bound = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    let read = GzDecoder::new(packed).take(bound).read_to_end(&mut plain);
    read.map_err(|error| format!("it cannot be unpacked: {error}"))?;
    if plain.len() > max {
        return Err(format!("it is longer than {max} bytes"));
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back_and_nothing_longer_than_the_bound() {
        let plain = vec![b'a'; 1 << 20];
        let packed = pack(&plain);

        assert!(packed.len() < plain.len() / 100, "{}", packed.len());
        assert_eq!(unpack(&packed, plain.len()).unwrap(), plain);
        assert!(unpack(&packed, plain.len() - 1).unwrap_err().contains("longer than"));
        assert_eq!(unpack(&pack(b""), 0).unwrap(), b"");
    }

    #[test]
    fn damage_is_an_error() {
        let mut packed = pack(b"a table, or so");
        assert!(unpack(&packed, 100).is_ok());

        assert!(unpack(&packed[..packed.len() - 1], 100).is_err(), "cut");
        assert!(unpack(b"", 100).is_err() && unpack(b"plain", 100).is_err());
        let middle = packed.len() / 2;
        packed[middle] ^= 1;
        assert!(unpack(&packed, 100).is_err(), "its checksum is wrong");
    }
}
