//! A digest that identifies weights without reading all of them.

use sha2::{Digest, Sha256};

use super::Config;

/// Bytes hashed at each end of a tensor.
const END_BYTES: usize = 4096;
/// Bytes of a digest.
pub(crate) const DIGEST_BYTES: usize = 32;

/// Builds the value of [`super::TensorSource::fingerprint`]. Every field is preceded by its length, so
/// no two sequences of fields have the same bytes.
pub(crate) struct Fingerprint(Sha256);

impl Fingerprint {
    /// Of the weights of a model.
    pub(crate) fn new(config: &Config) -> Self {
        let json = serde_json::to_vec(config).expect("a configuration is plain numbers and lists");
        let mut fingerprint = Self::of("fewsync-weights-1");
        fingerprint.field(&json);
        fingerprint
    }

    /// Of fields whose meaning `layout` names.
    pub(crate) fn of(layout: &str) -> Self {
        let mut fingerprint = Self(Sha256::new());
        fingerprint.field(layout.as_bytes());
        fingerprint
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// One tensor as it lies in the file.
    pub(crate) fn tensor(&mut self, name: &str, shape: (usize, usize), encoding: &str, bytes: &[u8]) {
        self.field(name.as_bytes());
        self.field(format!("{}x{} {encoding} {}", shape.0, shape.1, bytes.len()).as_bytes());
        let start = END_BYTES.min(bytes.len());
        let end = bytes.len().saturating_sub(END_BYTES).max(start);
        self.field(&bytes[..start]);
        self.field(&bytes[end..]);
    }

    /// The digest itself.
    pub(crate) fn digest(self) -> [u8; DIGEST_BYTES] {
        self.0.finalize().into()
    }

    pub(crate) fn finish(self) -> String {
        let hex: String = self.digest().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::shapes;

    fn digest(name: &str, shape: (usize, usize), encoding: &str, bytes: &[u8]) -> String {
        let mut fingerprint = Fingerprint::new(&shapes::named("tiny").unwrap());
        fingerprint.tensor(name, shape, encoding, bytes);
        fingerprint.finish()
    }

    #[test]
    fn every_part_counts() {
        let bytes = vec![7u8; 3 * END_BYTES];
        let base = digest("a", (2, 3), "F32", &bytes);
        assert!(base.len() == 7 + 64 && base.starts_with("sha256:"));
        assert_eq!(base, digest("a", (2, 3), "F32", &bytes));
        assert_ne!(base, digest("b", (2, 3), "F32", &bytes));
        assert_ne!(base, digest("a", (3, 2), "F32", &bytes));
        assert_ne!(base, digest("a", (2, 3), "F16", &bytes));
        assert_ne!(base, digest("a", (2, 3), "F32", &bytes[1..]));
        for at in [0, END_BYTES - 1, 2 * END_BYTES, 3 * END_BYTES - 1] {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert_ne!(base, digest("a", (2, 3), "F32", &changed), "byte {at}");
        }
        let mut other = shapes::named("tiny").unwrap();
        other.rms_eps *= 2.0;
        let mut fingerprint = Fingerprint::new(&other);
        fingerprint.tensor("a", (2, 3), "F32", &bytes);
        assert_ne!(base, fingerprint.finish());
    }
}
