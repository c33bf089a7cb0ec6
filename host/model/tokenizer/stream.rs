//! Text from ids that arrive one by one.

use super::pieces::Pieces;

/// Turns ids into text as they come, holding back bytes until their character is whole.
pub struct TextStream<'a> {
    pieces: &'a Pieces,
    /// The start of a character whose other bytes have not come yet: at most three bytes.
    pending: Vec<u8>,
    /// The next text begins with a padding space, which is not printed.
    strips_space: bool,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(pieces: &'a Pieces, strips_space: bool) -> Self {
        Self { pieces, pending: Vec::new(), strips_space }
    }

    /// The text that `id` completes, if any. Special tokens have none; bytes that can be part of no
    /// character become U+FFFD.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let mut piece = self.pieces.text(id);
        if self.strips_space && !piece.is_empty() {
            piece = piece.strip_prefix(b" ").unwrap_or(piece);
            self.strips_space = false;
        }
        self.pending.extend_from_slice(piece);
        let whole = self.pending.len() - unfinished(&self.pending);
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        (!text.is_empty()).then_some(text)
    }

    /// What is left when no more ids come: U+FFFD for a character that was never finished.
    pub fn finish(self) -> Option<String> {
        (!self.pending.is_empty()).then(|| String::from_utf8_lossy(&self.pending).into_owned())
    }
}

/// Length of the character that begins at the end of `bytes` and may still become valid.
fn unfinished(bytes: &[u8]) -> usize {
    let Some(last) = bytes.utf8_chunks().last() else { return 0 };
    let tail = last.invalid();
    let open = std::str::from_utf8(tail).is_err_and(|e| e.error_len().is_none());
    if open && bytes.ends_with(tail) { tail.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_character_that_can_still_be_finished_is_held_back() {
        assert_eq!(unfinished(b"abc"), 0);
        assert_eq!(unfinished(&[b'a', 0xe2, 0x82]), 2);
        assert_eq!(unfinished("€".as_bytes()), 0);
        assert_eq!(unfinished(&[0xff]), 0);
        assert_eq!(unfinished(&[0xe2, 0x82, b'a']), 0);
        assert_eq!(unfinished(&[0xc0]), 0);
        assert_eq!(unfinished(&[0xff, 0xf0, 0x9f, 0x98]), 3);
    }
}
