//! SHA-256 of files, and of bytes on their way into one.

use std::io::{self, ErrorKind, Read, Write};

use sha2::{Digest, Sha256};

/// Which end of a copy failed.
pub(super) enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

/// Copies all of `reader` and returns the number of bytes and their SHA-256 in hexadecimal digits.
pub(super) fn copy_hashed(
    reader: &mut impl Read,
    writer: &mut impl Write,
) -> Result<(u64, String), CopyError> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut total = 0;
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => n,
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            Err(e) => return Err(CopyError::Read(e)),
        };
        hasher.update(&buffer[..n]);
        writer.write_all(&buffer[..n]).map_err(CopyError::Write)?;
        total += n as u64;
    }
    let digits = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((total, digits))
}

/// SHA-256 of what is left in `reader`, in hexadecimal digits.
pub(super) fn sha256(reader: &mut impl Read) -> io::Result<String> {
    match copy_hashed(reader, &mut io::sink()) {
        Ok((_, sha256)) => Ok(sha256),
        Err(CopyError::Read(e) | CopyError::Write(e)) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_is_the_standard_one() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&mut &b"abc"[..]).unwrap(), abc);
    }
}
