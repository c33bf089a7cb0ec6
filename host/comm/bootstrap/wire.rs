//! Numbers and texts as bytes, little-endian, each text and list behind its length.

use std::io::{self, Read};

/// Longest text or payload taken from a peer: more is not ours.
const MAX_BYTES: usize = 1 << 30;

/// A message in the making.
#[derive(Debug, Default)]
pub(in crate::comm) struct Packer(Vec<u8>);

impl Packer {
    pub(in crate::comm) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(in crate::comm) fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(in crate::comm) fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(in crate::comm) fn bytes(mut self, bytes: &[u8]) -> Self {
        self = self.u64(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    pub(in crate::comm) fn numbers(self, numbers: &[usize]) -> Self {
        numbers.iter().fold(self.u64(numbers.len() as u64), |packer, &n| packer.u64(n as u64))
    }

    pub(in crate::comm) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Reads what a [`Packer`] made. An end in the middle is `UnexpectedEof`, nonsense is `InvalidData`.
#[derive(Debug)]
pub(in crate::comm) struct Unpacker<R>(pub(in crate::comm) R);

impl<R: Read> Unpacker<R> {
    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut array = [0; N];
        self.0.read_exact(&mut array)?;
        Ok(array)
    }

    pub(in crate::comm) fn u8(&mut self) -> io::Result<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(in crate::comm) fn u32(&mut self) -> io::Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(in crate::comm) fn u64(&mut self) -> io::Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(in crate::comm) fn index(&mut self) -> io::Result<usize> {
        usize::try_from(self.u64()?).map_err(|_| nonsense("a number is too large"))
    }

    fn len(&mut self) -> io::Result<usize> {
        self.index()
            .and_then(|len| if len > MAX_BYTES { Err(nonsense("a length is too large")) } else { Ok(len) })
    }

    pub(in crate::comm) fn bytes(&mut self) -> io::Result<Vec<u8>> {
        let len = self.len()?;
        let mut bytes = Vec::new();
        // Grows with what comes, not with what a stranger promises.
        (&mut self.0).take(len as u64).read_to_end(&mut bytes)?;
        if bytes.len() < len { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes) }
    }

    pub(in crate::comm) fn text(&mut self) -> io::Result<String> {
        String::from_utf8(self.bytes()?).map_err(|_| nonsense("a text is not UTF-8"))
    }

    pub(in crate::comm) fn numbers(&mut self) -> io::Result<Vec<usize>> {
        let len = self.len()?;
        (0..len).map(|_| self.index()).collect()
    }
}

/// An error for bytes that no peer of ours would send.
pub(in crate::comm) fn nonsense(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_unpacked() {
        let packed =
            Packer::default().u8(7).u32(1 << 31).u64(u64::MAX).bytes(b"abc").numbers(&[4, 0, 9]).finish();
        let mut unpacker = Unpacker(&packed[..]);
        assert_eq!((unpacker.u8().unwrap(), unpacker.u32().unwrap()), (7, 1 << 31));
        assert_eq!(unpacker.u64().unwrap(), u64::MAX);
        assert_eq!(unpacker.text().unwrap(), "abc");
        assert_eq!(unpacker.numbers().unwrap(), [4, 0, 9]);
        assert_eq!(unpacker.u8().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_promise_without_bytes_is_an_end() {
        let short = Packer::default().u64(1 << 29).u8(1).finish();
        assert_eq!(Unpacker(&short[..]).bytes().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let absurd = Packer::default().u64(1 << 40).finish();
        assert_eq!(Unpacker(&absurd[..]).bytes().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
