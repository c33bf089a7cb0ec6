//! Text to token ids and back, by the `tokenizers` crate.
//!
//! Works: `tokenizer.json` files with a byte-level or a SentencePiece-style decoder (every Llama
//! family), vocabularies stored in GGUF files ([`GgufVocab`]), and a byte vocabulary for random weights.
//! Refused: decoders of other families (WordPiece, CTC), unknown GGUF pre-tokenizers.

mod bytes;
mod gguf;
mod pieces;
mod sentencepiece;
mod stream;

use std::path::Path;

pub use gguf::GgufVocab;
pub use stream::TextStream;

use super::ModelError;
use pieces::Pieces;

/// Encodes text to token ids and decodes ids to text.
pub struct Tokenizer {
    encoder: Encoder,
    pieces: Pieces,
    /// What the model wants in front of every prompt: the BOS token, or nothing.
    prefix: Vec<u32>,
}

enum Encoder {
    Trained(Box<tokenizers::Tokenizer>),
    Bytes,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`; its post-processor says whether prompts begin with BOS.
    pub fn from_file(path: &Path) -> Result<Self, ModelError> {
        let json = std::fs::read(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ModelError::Missing {
                path: path.into(),
                hint: "a safetensors model needs the tokenizer.json of its repository beside it".into(),
            },
            _ => ModelError::io(path, "read", source),
        })?;
        let trained = tokenizers::Tokenizer::from_bytes(&json)
            .map_err(|e| ModelError::corrupt(path, format!("not a tokenizer.json: {e}")))?;
        let prefix = prefix_of(&trained)?;
        Self::trained(trained, prefix)
    }

    /// Builds the tokenizer that a GGUF file describes.
    pub fn from_vocab(vocab: &GgufVocab) -> Result<Self, ModelError> {
        let json = vocab.to_tokenizer_json()?;
        let trained = serde_json::from_value(json).map_err(|e| failed(&e))?;
        let prefix = if vocab.adds_bos() { Vec::from_iter(vocab.bos) } else { Vec::new() };
        Self::trained(trained, prefix)
    }

    /// For random weights: ids 0–255 are bytes, the ids above read and print as `<|id|>`.
    /// `vocab` is the model's, at least 256.
    pub fn bytes(vocab: usize) -> Result<Self, ModelError> {
        if vocab < 256 {
            let what = format!("a byte vocabulary needs 256 tokens, the model has {vocab}");
            return Err(ModelError::Tokenizer { what });
        }
        Ok(Self { encoder: Encoder::Bytes, pieces: bytes::pieces(vocab), prefix: Vec::new() })
    }

    fn trained(mut trained: tokenizers::Tokenizer, prefix: Vec<u32>) -> Result<Self, ModelError> {
        // Some files carry the limits of the training run, which would cut or pad prompts.
        trained.with_padding(None).with_truncation(None).map_err(|e| failed(&e))?;
        let pieces = Pieces::of(&trained)?;
        Ok(Self { encoder: Encoder::Trained(Box::new(trained)), pieces, prefix })
    }

    /// A prompt: special tokens written in the text are parsed as such, and BOS is put in front where
    /// the model wants one and the text does not begin with it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        let ids = self.encode_plain(text)?;
        if ids.starts_with(&self.prefix) {
            return Ok(ids);
        }
        Ok([self.prefix.as_slice(), &ids].concat())
    }

    /// As [`Self::encode`] without BOS: for corpus text, and for rendered chats, which write their own.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        match &self.encoder {
            Encoder::Bytes => Ok(bytes::encode(text, self.vocab_size())),
            Encoder::Trained(trained) => {
                let encoding = trained.encode_fast(text, false).map_err(|e| failed(&e))?;
                Ok(encoding.get_ids().to_vec())
            }
        }
    }

    /// The text of `ids`; special tokens are left out, bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.collect(self.stream(), ids)
    }

    /// As [`Self::decode`] for ids that continue a prompt: a leading space is text, not padding.
    pub fn decode_continuation(&self, ids: &[u32]) -> String {
        self.collect(self.stream_continuation(), ids)
    }

    /// Decodes one id at a time; the pieces add up to [`Self::decode`] of all ids.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream::new(&self.pieces, self.pieces.pads_with_space())
    }

    /// Decodes one id at a time; the pieces add up to [`Self::decode_continuation`] of all ids.
    pub fn stream_continuation(&self) -> TextStream<'_> {
        TextStream::new(&self.pieces, false)
    }

    fn collect(&self, mut stream: TextStream<'_>, ids: &[u32]) -> String {
        let mut text: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
        text.extend(stream.finish());
        text
    }

    /// One above the largest id.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// Fails if ids of this tokenizer could fall outside a model of `vocab` embeddings.
    pub fn check_vocab(&self, vocab: usize) -> Result<(), ModelError> {
        let tokens = self.vocab_size();
        if tokens > vocab { Err(ModelError::Vocabulary { tokens, vocab }) } else { Ok(()) }
    }

    /// The id of a token by its name in the vocabulary, such as `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.encoder {
            Encoder::Trained(trained) => trained.token_to_id(token),
            Encoder::Bytes => bytes::token_id(token, self.vocab_size()),
        }
    }

    /// Whether `id` is a special token, which [`Self::decode`] leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.pieces.is_special(id)
    }
}

/// The ids that the post-processor puts in front of a text.
fn prefix_of(trained: &tokenizers::Tokenizer) -> Result<Vec<u32>, ModelError> {
    let ids =
        |special| trained.encode_fast("a", special).map(|e| e.get_ids().to_vec()).map_err(|e| failed(&e));
    let (plain, framed) = (ids(false)?, ids(true)?);
    let at = framed.windows(plain.len().max(1)).position(|window| window == plain);
    Ok(framed[..at.unwrap_or(0)].to_vec())
}

fn failed(error: &dyn std::fmt::Display) -> ModelError {
    ModelError::Tokenizer { what: error.to_string() }
}

#[cfg(test)]
mod tests;
