use proptest::prelude::*;
use serde_json::json;

use super::*;

const CONTROL: i32 = 3;
const NONE: [u32; 0] = [];

/// The character that stands for a byte in a byte-level vocabulary.
fn letter(byte: u8) -> char {
    let table = tokenizers::decoders::byte_level::ByteLevel::alphabet();
    let mut letters = Vec::from_iter(table);
    letters.sort_unstable();
    let printable = |c: &char| (*c as u32) < 0x100;
    if letters.contains(&(byte as char)) {
        return byte as char;
    }
    let plain: Vec<u8> = letters.iter().copied().filter(printable).map(|c| c as u8).collect();
    let shifted = (0..byte).filter(|b| !plain.contains(b)).count() as u32;
    char::from_u32(0x100 + shifted).unwrap()
}

/// Bytes as ids 0–255, then: 256 ` t`, 257 `he`, 258 ` the`, 259 `12`, 260 `<|end|>`, 261 `cat`, which
/// no merge reaches.
fn byte_level(pre: &str) -> GgufVocab {
    let mut tokens: Vec<String> = (0..=255).map(|byte| letter(byte).to_string()).collect();
    tokens.extend(["Ġt", "he", "Ġthe", "12", "<|end|>", "cat"].map(String::from));
    let mut token_types = vec![1; tokens.len()];
    token_types[260] = CONTROL;
    GgufVocab {
        model: "gpt2".into(),
        pre: Some(pre.into()),
        tokens,
        token_types,
        merges: ["Ġ t", "h e", "Ġt he", "1 2"].map(String::from).to_vec(),
        eos: Some(260),
        ..GgufVocab::default()
    }
}

/// 0 `<unk>`, 1 `<s>`, 2 `</s>`, 3–258 the bytes, then the pieces that spell "hello", and 269 `<sep>`.
fn sentencepiece() -> GgufVocab {
    let mut tokens = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let pieces = ["▁", "h", "e", "l", "o", "he", "ll", "▁he", "llo", "▁hello"];
    tokens.extend(pieces.map(String::from));
    tokens.push("<sep>".into());
    let mut token_types = vec![6; 259];
    token_types[..3].copy_from_slice(&[2, CONTROL, CONTROL]);
    token_types.extend([1; 10]);
    token_types.push(4);
    let mut scores = vec![0.0; 259];
    scores.extend([-9.0, -9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0, -5.0, 0.0]);
    let (bos, eos, unk) = (Some(1), Some(2), Some(0));
    GgufVocab { model: "llama".into(), tokens, scores, token_types, bos, eos, unk, ..GgufVocab::default() }
}

/// The id of a byte token in [`sentencepiece`].
fn byte(byte: u8) -> u32 {
    3 + u32::from(byte)
}

/// The same vocabulary as a hand-written `tokenizer.json`, with merges in the old spelling.
fn sentencepiece_file(dir: &Path) -> Tokenizer {
    let vocab = sentencepiece();
    let ids: serde_json::Map<_, _> =
        vocab.tokens.iter().enumerate().map(|(id, token)| (token.clone(), id.into())).collect();
    let added = |id: usize, special: bool| {
        json!({"id": id, "content": vocab.tokens[id], "special": special, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false})
    };
    let file = json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "added_tokens": [added(0, true), added(1, true), added(2, true), added(269, false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "post_processor": {"type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true,
            "vocab": ids, "merges": ["h e", "l l", "▁ he", "ll o", "▁he llo"]},
    });
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    Tokenizer::from_file(&path).unwrap()
}

#[test]
fn pre_tokenizers_split_numbers_their_own_way() {
    let ids = |pre, text| Tokenizer::from_vocab(&byte_level(pre)).unwrap().encode_plain(text).unwrap();
    let text = "the 12 the<|end|>";
    assert_eq!(ids("smollm", text), [116, 257, 32, 49, 50, 258, 260]);
    assert_eq!(ids("gpt-2", text), [116, 257, 32, 259, 258, 260]);
    assert_eq!(ids("llama-bpe", text), [116, 257, 32, 259, 258, 260]);
    assert_eq!(ids("gpt-2", "1212"), [259, 259]);
    assert_eq!(ids("llama-bpe", "1212"), [259, 49, 50]);
}

#[test]
fn only_llama_3_takes_words_whole() {
    let ids = |pre| Tokenizer::from_vocab(&byte_level(pre)).unwrap().encode_plain("cat").unwrap();
    assert_eq!(ids("gpt-2"), [99, 97, 116]);
    assert_eq!(ids("llama3"), [261]);
}

#[test]
fn sentencepiece_ids_worked_out_by_hand() {
    let t = Tokenizer::from_vocab(&sentencepiece()).unwrap();
    let [space, ll, space_he, hello, sep] = [259, 265, 266, 268, 269];
    assert_eq!(t.encode("hello").unwrap(), [1, hello]);
    assert_eq!(t.encode_plain("hello").unwrap(), [hello]);
    assert_eq!(t.encode("<s>hello").unwrap(), [1, hello], "BOS is not doubled");
    let euro = [byte(0xe2), byte(0x82), byte(0xac)];
    let expected = [&[space_he, ll, space], &euro[..], &[byte(b'\n')]].concat();
    assert_eq!(t.encode_plain("hell €\n").unwrap(), expected);
    assert_eq!(t.encode_plain("he<sep>he").unwrap(), [space_he, sep, space_he]);
    assert_eq!(t.decode(&[1, hello, space_he]), "hello he");
    assert_eq!(t.decode_continuation(&[hello, space_he, 2]), " hello he");
}

#[test]
fn characters_without_bytes_become_unknown() {
    let mut vocab = sentencepiece();
    vocab.tokens[byte(b'x') as usize] = "<gone>".into();
    let ids = Tokenizer::from_vocab(&vocab).unwrap().encode_plain("x").unwrap();
    assert_eq!(ids, [259, 0]);
}

#[test]
fn bos_comes_from_the_file_or_the_kind() {
    let prefix = |vocab: &GgufVocab| Tokenizer::from_vocab(vocab).unwrap().encode("").unwrap();
    let with_bos = |pre| GgufVocab { bos: Some(260), ..byte_level(pre) };
    assert_eq!(prefix(&with_bos("smollm")), NONE);
    assert_eq!(prefix(&with_bos("llama-bpe")), [260]);
    assert_eq!(prefix(&GgufVocab { add_bos: Some(false), ..with_bos("llama-bpe") }), NONE);
    assert_eq!(prefix(&GgufVocab { add_bos: Some(true), ..with_bos("smollm") }), [260]);
    assert_eq!(prefix(&GgufVocab { add_bos: Some(false), ..sentencepiece() }), NONE);
}

#[test]
fn no_space_prefix_where_the_file_says_so() {
    let vocab = GgufVocab { add_space_prefix: Some(false), ..sentencepiece() };
    let t = Tokenizer::from_vocab(&vocab).unwrap();
    assert_eq!(t.encode_plain("he hello").unwrap(), [264, 268]);
    assert_eq!(t.decode(&[268]), " hello");
}

#[test]
fn refusals_say_what_would_work() {
    let error = |vocab: GgufVocab| Tokenizer::from_vocab(&vocab).err().unwrap().to_string();
    let pre = error(byte_level("qwen2"));
    assert!(pre.contains("'qwen2'") && pre.contains("smollm") && pre.contains("llama-bpe"), "{pre}");
    assert!(error(GgufVocab { model: "bert".into(), ..byte_level("gpt-2") }).contains("gpt2, llama"));
    assert!(error(GgufVocab { scores: vec![], ..sentencepiece() }).contains("scores"));
    assert!(error(GgufVocab { token_types: vec![1], ..sentencepiece() }).contains("token types"));
    assert!(error(GgufVocab { merges: vec!["ab".into()], ..byte_level("gpt-2") }).contains("'ab'"));
    assert!(error(GgufVocab { merges: vec!["q qq".into()], ..byte_level("gpt-2") }).contains("qq"));
    assert!(error(GgufVocab { bos: Some(999), ..sentencepiece() }).contains("999"));
    assert!(error(GgufVocab::default()).contains("no tokens"));
}

#[test]
fn a_missing_or_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tokenizer.json");
    let missing = Tokenizer::from_file(&path).err().unwrap();
    assert!(matches!(&missing, ModelError::Missing { path: p, .. } if *p == path), "{missing}");
    std::fs::write(&path, "{\"version\": \"1.0\", ").unwrap();
    let damaged = Tokenizer::from_file(&path).err().unwrap();
    assert!(matches!(&damaged, ModelError::Corrupt { path: p, .. } if *p == path), "{damaged}");
}

#[test]
fn a_vocabulary_larger_than_the_model_is_an_error() {
    let t = Tokenizer::from_vocab(&sentencepiece()).unwrap();
    assert_eq!(t.vocab_size(), 270);
    t.check_vocab(270).unwrap();
    let error = t.check_vocab(269).unwrap_err();
    assert!(matches!(error, ModelError::Vocabulary { tokens: 270, vocab: 269 }));
}

#[test]
fn byte_vocabulary() {
    let t = Tokenizer::bytes(1000).unwrap();
    assert_eq!(t.encode("aé").unwrap(), [97, 0xc3, 0xa9]);
    assert_eq!(t.encode("<|300|><|1000|>").unwrap()[0], 300);
    assert_eq!(t.encode("<|300|><|1000|>").unwrap().len(), 1 + "<|1000|>".len());
    assert_eq!(t.decode(&[97, 300, 0xc3]), "a<|300|>\u{fffd}");
    assert!(Tokenizer::bytes(255).is_err());
}

#[test]
fn a_stream_waits_for_whole_characters() {
    let t = Tokenizer::from_vocab(&sentencepiece()).unwrap();
    let mut stream = t.stream();
    assert_eq!(stream.push(1), None, "special tokens are not printed");
    assert_eq!(stream.push(268).as_deref(), Some("hello"));
    assert_eq!(stream.push(byte(0xe2)), None);
    assert_eq!(stream.push(byte(0x82)), None);
    assert_eq!(stream.push(byte(0xac)).as_deref(), Some("€"));
    assert_eq!(stream.push(byte(0xf0)), None);
    assert_eq!(stream.push(99_999), None, "ids outside the vocabulary have no text");
    assert_eq!(stream.push(266).as_deref(), Some("\u{fffd} he"));
    assert_eq!(stream.push(byte(0x9f)).as_deref(), Some("\u{fffd}"));
    assert_eq!(stream.push(byte(0xf0)), None);
    assert_eq!(stream.finish().as_deref(), Some("\u{fffd}"));
}

/// Any text, often made of what the small vocabularies know.
fn text() -> impl Strategy<Value = String> {
    let known =
        prop::sample::select(vec!["hello", " the", "12", " ", "\n", "€", "🦀", "<sep>", "cat", "\u{301}"]);
    let piece = prop_oneof![known.prop_map(String::from), any::<String>()];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat().replace('▁', ""))
}

#[test]
fn texts_survive_the_round_trip() {
    let spm = Tokenizer::from_vocab(&sentencepiece()).unwrap();
    let mut tokenizers = vec![Tokenizer::bytes(300).unwrap()];
    let vocabs = ["smollm", "gpt-2", "llama3"].map(byte_level);
    tokenizers.extend(vocabs.iter().map(|vocab| Tokenizer::from_vocab(vocab).unwrap()));
    proptest!(|(text in text())| {
        for t in &tokenizers {
            prop_assert_eq!(&t.decode(&t.encode(&text).unwrap()), &text);
        }
        // After a token found in the text, SentencePiece pads once more.
        let plain = text.replace("<sep>", "");
        prop_assert_eq!(&spm.decode(&spm.encode(&plain).unwrap()), &plain);
    });
}

#[test]
fn streamed_pieces_add_up_to_the_whole() {
    let tokenizers =
        [sentencepiece(), byte_level("smollm")].map(|vocab| Tokenizer::from_vocab(&vocab).unwrap());
    proptest!(|(ids in prop::collection::vec(0u32..275, 0..40))| {
        for t in &tokenizers {
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| t.pieces.text(id)).copied().collect();
            let mut stream = t.stream_continuation();
            let mut streamed: String = ids.iter().filter_map(|&id| stream.push(id)).collect();
            streamed.extend(stream.finish());
            prop_assert_eq!(&streamed, &String::from_utf8_lossy(&bytes));
            prop_assert_eq!(&streamed, &t.decode_continuation(&ids));
        }
    });
}

#[test]
fn gguf_and_json_build_the_same_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let (gguf, file) = (Tokenizer::from_vocab(&sentencepiece()).unwrap(), sentencepiece_file(dir.path()));
    let Encoder::Trained(library) = &file.encoder else { unreachable!() };
    proptest!(|(text in text())| {
        let ids = gguf.encode(&text).unwrap();
        prop_assert_eq!(&ids, &file.encode(&text).unwrap());
        prop_assert_eq!(gguf.decode(&ids), file.decode(&ids));
        // The library's own decoder agrees wherever the bytes are valid UTF-8.
        prop_assert_eq!(file.decode(&ids), library.decode(&ids, true).unwrap());
    });
}
