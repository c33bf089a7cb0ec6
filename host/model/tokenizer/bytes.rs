//! The byte vocabulary of models with random weights.

use super::pieces::Pieces;

/// Bytes, then visible names: with random weights nearly every id lies above 255.
pub(super) fn pieces(vocab: usize) -> Pieces {
    let mut pieces = Pieces::default();
    for id in 0..vocab {
        match u8::try_from(id) {
            Ok(byte) => pieces.push(&[byte], false),
            Err(_) => pieces.push(format!("<|{id}|>").as_bytes(), false),
        }
    }
    pieces
}

/// Bytes as they are, except where the text spells the name of an id above 255.
pub(super) fn encode(text: &str, vocab: usize) -> Vec<u32> {
    let mut ids = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("<|") {
        let end = rest[start..].find("|>").map(|length| start + length + 2);
        match end.and_then(|end| Some((end, token_id(&rest[start..end], vocab)?))) {
            Some((end, id)) => {
                ids.extend(rest[..start].bytes().map(u32::from));
                ids.push(id);
                rest = &rest[end..];
            }
            None => {
                ids.extend(rest[..start + 1].bytes().map(u32::from));
                rest = &rest[start + 1..];
            }
        }
    }
    ids.extend(rest.bytes().map(u32::from));
    ids
}

/// `<|id|>` in its canonical spelling, for ids from 256 to `vocab - 1`.
pub(super) fn token_id(token: &str, vocab: usize) -> Option<u32> {
    let digits = token.strip_prefix("<|")?.strip_suffix("|>")?;
    let id: u32 = digits.parse().ok()?;
    (id >= 256 && (id as usize) < vocab && id.to_string() == digits).then_some(id)
}
