//! SentencePiece BPE with byte fallback: the tokenizer of Llama 2, from a GGUF vocabulary.
//!
//! The file stores no merges. A token is reached by every way of cutting it into two tokens, and ranks
//! by its score, which is how the converter of transformers rebuilds them.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::ModelError;
use super::gguf::{GgufVocab, TokenType, refuse};
use super::pieces::{SPACE_MARK, byte_token};

/// Normalizer, pre-tokenizer, decoder and model of a `tokenizer.json`.
pub(super) fn parts(vocab: &GgufVocab) -> Result<(Value, Value, Value, Value), ModelError> {
    if vocab.scores.is_empty() {
        return refuse("a 'llama' vocabulary needs scores; convert the file again".into());
    }
    let pads = vocab.add_space_prefix.unwrap_or(true);
    let unk = vocab.unk.map_or_else(
        || (0..vocab.tokens.len()).find(|&id| vocab.token_type(id) == TokenType::Unknown),
        |id| Some(id as usize),
    );
    let model = json!({
        "type": "BPE",
        "unk_token": unk.map(|id| &vocab.tokens[id]),
        "fuse_unk": true,
        "byte_fallback": vocab.tokens.iter().any(|token| byte_token(token).is_some()),
        "vocab": vocab.vocab(),
        "merges": merges(vocab),
    });
    Ok((normalizer(pads), Value::Null, decoder(pads), model))
}

fn normalizer(pads: bool) -> Value {
    let mark = SPACE_MARK.to_string();
    let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": mark});
    if !pads {
        return replace;
    }
    json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": mark}, replace]})
}

fn decoder(pads: bool) -> Value {
    let mark = SPACE_MARK.to_string();
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": mark}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if pads {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

/// Every pair of normal tokens whose concatenation is a normal token: best score first, then the
/// longer left half, then the longer right half.
fn merges(vocab: &GgufVocab) -> Vec<(&str, &str)> {
    let normal = |id: &usize| vocab.token_type(*id) == TokenType::Normal;
    let ids: HashMap<&str, usize> =
        (0..vocab.tokens.len()).filter(normal).map(|id| (vocab.tokens[id].as_str(), id)).collect();
    let mut merges = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate().filter(|(id, _)| normal(id)) {
        for (n_left, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                let n_right = right.chars().count();
                merges.push((vocab.scores[id], n_left, n_right, (l, r), (left, right)));
            }
        }
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))).then(a.3.cmp(&b.3)));
    merges.into_iter().map(|merge| merge.4).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merges_follow_the_scores() {
        let tokens = ["a", "b", "c", "ab", "bc", "abc"].map(String::from).to_vec();
        let scores = vec![-9.0, -9.0, -9.0, -2.0, -1.0, -3.0];
        let vocab = GgufVocab { tokens, scores, ..GgufVocab::default() };
        assert_eq!(merges(&vocab), [("b", "c"), ("a", "b"), ("ab", "c"), ("a", "bc")]);
    }
}
