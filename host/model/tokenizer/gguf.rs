//! The tokenizer that a GGUF file carries in its metadata, as a `tokenizer.json`.

use serde_json::{Map, Value, json};

use super::{ModelError, sentencepiece};

/// The `tokenizer.*` metadata of a GGUF file, key by key.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufVocab {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: how `gpt2` splits text into words.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`: names by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`: one per token (`llama`), or empty.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`: one per token, or empty (all normal).
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`: pairs in order of rank, joined by a space (`gpt2`).
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`.
    pub eot: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix` (`llama`; absent means true).
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// Values of `tokenizer.ggml.token_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// The ways this program can split text before byte-level BPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PreTokenizer {
    Gpt2,
    SmolLm,
    Llama3,
}

/// Contractions, words with the mark before them, up to three digits, punctuation, line ends, spaces.
const LLAMA3_WORDS: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

impl PreTokenizer {
    fn from_name(name: Option<&str>) -> Result<Self, ModelError> {
        match name {
            None | Some("default" | "gpt-2") => Ok(Self::Gpt2),
            Some("smollm") => Ok(Self::SmolLm),
            Some("llama-bpe" | "llama3" | "llama-v3") => Ok(Self::Llama3),
            Some(other) => refuse(format!(
                "pre-tokenizer '{other}' is not supported; \
                 supported: default, gpt-2, smollm, llama-bpe, llama3, llama-v3"
            )),
        }
    }

    fn to_json(self) -> Value {
        let byte_level = |use_regex: bool| {
            json!({
                "type": "ByteLevel",
                "add_prefix_space": false,
                "trim_offsets": true,
                "use_regex": use_regex,
            })
        };
        let sequence =
            |first: Value, second: Value| json!({"type": "Sequence", "pretokenizers": [first, second]});
        let digits = json!({"type": "Digits", "individual_digits": true});
        let words = json!({
            "type": "Split",
            "pattern": {"Regex": LLAMA3_WORDS},
            "behavior": "Isolated",
            "invert": false,
        });
        match self {
            Self::Gpt2 => byte_level(true),
            Self::SmolLm => sequence(digits, byte_level(true)),
            Self::Llama3 => sequence(words, byte_level(false)),
        }
    }
}

impl GgufVocab {
    /// Whether prompts begin with BOS: as the file says, else as its kind of tokenizer always did.
    pub fn adds_bos(&self) -> bool {
        let llama3 = PreTokenizer::from_name(self.pre.as_deref()).is_ok_and(|p| p == PreTokenizer::Llama3);
        self.add_bos.unwrap_or(self.model == "llama" || llama3)
    }

    /// The name of a token, empty where the id is absent or outside the vocabulary.
    pub fn token(&self, id: Option<u32>) -> &str {
        id.and_then(|id| self.tokens.get(id as usize)).map_or("", String::as_str)
    }

    pub(super) fn to_tokenizer_json(&self) -> Result<Value, ModelError> {
        self.check()?;
        let (normalizer, pre_tokenizer, decoder, model) = match self.model.as_str() {
            "gpt2" => self.byte_level()?,
            "llama" => sentencepiece::parts(self)?,
            other => return refuse(format!("model '{other}' is not supported; supported: gpt2, llama")),
        };
        Ok(json!({
            "version": "1.0",
            "added_tokens": self.added_tokens(),
            "normalizer": normalizer,
            "pre_tokenizer": pre_tokenizer,
            "decoder": decoder,
            "model": model,
        }))
    }

    fn check(&self) -> Result<(), ModelError> {
        let n = self.tokens.len();
        if n == 0 {
            return refuse("the file holds no tokens".into());
        }
        for (what, len) in [("token types", self.token_types.len()), ("scores", self.scores.len())] {
            if len != 0 && len != n {
                return refuse(format!("{n} tokens but {len} {what}; convert the file again"));
            }
        }
        let named = [("BOS", self.bos), ("EOS", self.eos), ("EOT", self.eot), ("unknown", self.unk)];
        for (what, id) in named {
            if id.is_some_and(|id| id as usize >= n) {
                let id = id.unwrap_or_default();
                return refuse(format!(
                    "the {what} token {id} is outside the {n} tokens; convert the file again"
                ));
            }
        }
        Ok(())
    }

    fn byte_level(&self) -> Result<(Value, Value, Value, Value), ModelError> {
        let pre = PreTokenizer::from_name(self.pre.as_deref())?;
        let merges = self.merges.iter().map(|line| merge(line)).collect::<Result<Vec<_>, _>>()?;
        let model = json!({
            "type": "BPE",
            // Llama 3 takes a word that is a token whole, whatever the merges would make of it.
            "ignore_merges": pre == PreTokenizer::Llama3,
            "vocab": self.vocab(),
            "merges": merges,
        });
        let decoder =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        Ok((Value::Null, pre.to_json(), decoder, model))
    }

    /// Name to id; the first of equal names counts.
    pub(super) fn vocab(&self) -> Map<String, Value> {
        let mut vocab = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            vocab.entry(token.as_str()).or_insert_with(|| id.into());
        }
        vocab
    }

    /// The tokens that are found in a text before it is split into words.
    fn added_tokens(&self) -> Vec<Value> {
        let mut added = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
            let special = match self.token_type(id) {
                TokenType::Control | TokenType::Unknown => true,
                TokenType::UserDefined => false,
                _ => continue,
            };
            if !token.is_empty() {
                added.push(json!({"id": id, "content": token, "special": special, "normalized": false,
                    "single_word": false, "lstrip": false, "rstrip": false}));
            }
        }
        added
    }

    pub(super) fn token_type(&self, id: usize) -> TokenType {
        match self.token_types.get(id) {
            Some(2) => TokenType::Unknown,
            Some(3) => TokenType::Control,
            Some(4) => TokenType::UserDefined,
            Some(5) => TokenType::Unused,
            Some(6) => TokenType::Byte,
            _ => TokenType::Normal,
        }
    }
}

/// Splits `"a b"`; the left part has at least one character, which may itself be a space.
fn merge(line: &str) -> Result<[&str; 2], ModelError> {
    let first = line.chars().next().map_or(0, char::len_utf8);
    match line[first..].split_once(' ') {
        Some((left, right)) if !right.is_empty() => Ok([&line[..first + left.len()], right]),
        _ => refuse(format!("merge '{line}' is not a pair of tokens; convert the file again")),
    }
}

pub(super) fn refuse<T>(what: String) -> Result<T, ModelError> {
    Err(ModelError::Tokenizer { what })
}
