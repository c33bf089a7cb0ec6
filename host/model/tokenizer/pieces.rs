//! The bytes that each token stands for.
//!
//! Decoding by table makes one id at a time and all ids at once agree byte for byte, which the
//! string-to-string decoders of a `tokenizer.json` do not promise inside a character.

use serde_json::Value;

use super::ModelError;

/// How a SentencePiece vocabulary writes a space.
pub(super) const SPACE_MARK: char = '▁';

/// One byte string per id, back to back.
#[derive(Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    special: Vec<bool>,
    pads_with_space: bool,
}

/// How the names in a vocabulary spell bytes.
#[derive(Clone, Copy)]
enum Spelling {
    /// GPT-2's alphabet of 256 printable characters.
    ByteLevel,
    /// `▁` for a space, `<0xHH>` for a byte outside the alphabet.
    SentencePiece { pads_with_space: bool },
}

impl Pieces {
    /// Reads the vocabulary of `trained` in the spelling that its decoder implies.
    pub(super) fn of(trained: &tokenizers::Tokenizer) -> Result<Self, ModelError> {
        let decoder = serde_json::to_value(trained.get_decoder()).map_err(|e| super::failed(&e))?;
        let spelling = Spelling::of(&decoder)?;
        let mut tokens = Vec::from_iter(trained.get_vocab(true));
        tokens.sort_unstable_by_key(|&(_, id)| id);
        let added = trained.get_added_tokens_decoder();
        let mut pieces = Self { pads_with_space: spelling.pads_with_space(), ..Self::default() };
        for (token, id) in tokens {
            while pieces.len() < id as usize {
                pieces.push(&[], true);
            }
            if pieces.len() == id as usize {
                let special = added.get(&id).is_some_and(|token| token.special);
                pieces.push(&spelling.bytes(&token), special);
            }
        }
        Ok(pieces)
    }

    /// Appends the piece of the next id.
    pub(super) fn push(&mut self, bytes: &[u8], special: bool) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
        self.special.push(special);
    }

    /// Number of ids.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether texts are padded with one space in front before they are encoded.
    pub(super) fn pads_with_space(&self) -> bool {
        self.pads_with_space
    }

    /// Ids outside the vocabulary count as special: they have no text.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(true)
    }

    /// What `id` adds to a text; nothing for a special token.
    pub(super) fn text(&self, id: u32) -> &[u8] {
        if self.is_special(id) {
            return &[];
        }
        let id = id as usize;
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start..self.ends[id]]
    }
}

impl Spelling {
    fn of(decoder: &Value) -> Result<Self, ModelError> {
        let one = std::slice::from_ref(decoder);
        let steps = decoder["decoders"].as_array().map_or(one, Vec::as_slice);
        let kinds = Vec::from_iter(steps.iter().map(|step| step["type"].as_str().unwrap_or("none")));
        let known = ["Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"];
        if kinds.contains(&"ByteLevel") && kinds.iter().all(|kind| ["ByteLevel", "Fuse"].contains(kind)) {
            return Ok(Self::ByteLevel);
        }
        if let Some(kind) = kinds.iter().find(|kind| !known.contains(kind)) {
            let what =
                format!("decoder '{kind}' is not supported; supported: ByteLevel, SentencePiece-style");
            return Err(ModelError::Tokenizer { what });
        }
        let pads = |step: &Value| match step["type"].as_str() {
            Some("Strip") => step["content"] == " " && step["start"].as_u64() > Some(0),
            Some("Metaspace") => step["prepend_scheme"] != "never",
            _ => false,
        };
        Ok(Self::SentencePiece { pads_with_space: steps.iter().any(pads) })
    }

    fn pads_with_space(self) -> bool {
        matches!(self, Self::SentencePiece { pads_with_space: true })
    }

    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            // A token outside the alphabet was added by its plain text.
            Self::ByteLevel => {
                token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.into())
            }
            Self::SentencePiece { .. } => match byte_token(token) {
                Some(byte) => vec![byte],
                None => token.replace(SPACE_MARK, " ").into_bytes(),
            },
        }
    }
}

/// The byte that `<0xHH>` names.
pub(super) fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let two_digits = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if two_digits { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The byte behind a character of GPT-2's alphabet: printable Latin-1 stands for itself, the other 68
/// bytes follow each other from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    match c as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection_onto_bytes() {
        let alphabet = tokenizers::pre_tokenizers::byte_level::ByteLevel::alphabet();
        let mut bytes: Vec<_> = alphabet.iter().map(|&c| byte_of(c).unwrap()).collect();
        bytes.sort_unstable();
        assert_eq!(bytes, Vec::from_iter(0..=255u8));
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of(' '), None);
    }

    #[test]
    fn byte_tokens_have_two_hex_digits() {
        assert_eq!(byte_token("<0x0A>"), Some(b'\n'));
        assert_eq!(byte_token("<0xA>"), None);
        assert_eq!(byte_token("<0x+A>"), None);
        assert_eq!(byte_token("0x0A"), None);
    }

    #[test]
    fn other_decoders_are_refused_by_name() {
        let refused = Spelling::of(&serde_json::json!({"type": "WordPiece"}));
        assert!(refused.err().unwrap().to_string().contains("'WordPiece'"));
    }
}
