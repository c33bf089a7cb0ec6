use std::path::Path;

use serde_json::{Value, json};

use super::super::{Config, RopeScaling};
use crate::model::shapes;

/// As published with Llama-3.2-1B.
fn llama32_1b() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama",
        "attention_bias": false, "mlp_bias": false, "hidden_act": "silu",
        "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
        "vocab_size": 128256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "tie_word_embeddings": true,
        "rope_scaling": {
            "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3"
        },
        "bos_token_id": 128000, "eos_token_id": 128001, "pad_token_id": null
    })
}

fn with(name: &str, value: Value) -> Value {
    let mut json = llama32_1b();
    json[name] = value;
    json
}

fn without(name: &str) -> Value {
    let mut json = llama32_1b();
    json.as_object_mut().unwrap().remove(name).unwrap();
    json
}

fn read(json: &Value) -> Result<Config, crate::model::ModelError> {
    Config::from_hf(Path::new("m/config.json"), &json.to_string())
}

#[track_caller]
fn refused(json: Value, needles: &[&str]) {
    let message = read(&json).unwrap_err().to_string();
    for needle in needles.iter().chain(&["m/config.json"]) {
        assert!(message.contains(needle), "{message}");
    }
}

#[test]
fn llama_3_2_is_read_whole() {
    let mut want = shapes::named("llama3.2-1b").unwrap();
    (want.bos, want.eos) = (Some(128000), vec![128001]);
    assert_eq!(read(&llama32_1b()).unwrap(), want);
}

#[test]
fn llama_2_defaults_apply() {
    let json = json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05, "rope_scaling": null, "bos_token_id": 1, "eos_token_id": 2
    });
    let mut want = shapes::named("llama2-7b").unwrap();
    (want.bos, want.eos) = (Some(1), vec![2]);
    assert_eq!(read(&json).unwrap(), want);
}

#[test]
fn both_rope_layouts_and_both_type_keys_agree() {
    let want = read(&llama32_1b()).unwrap();
    let mut new_layout = without("rope_theta");
    let mut scaling = new_layout.as_object_mut().unwrap().remove("rope_scaling").unwrap();
    scaling["rope_theta"] = json!(500000.0);
    new_layout["rope_parameters"] = scaling;
    assert_eq!(read(&new_layout).unwrap(), want);

    let mut old_key = llama32_1b();
    let scaling = old_key["rope_scaling"].as_object_mut().unwrap();
    let kind = scaling.remove("rope_type").unwrap();
    scaling.insert("type".into(), kind);
    assert_eq!(read(&old_key).unwrap(), want);

    let plain = read(&with("rope_scaling", json!({"rope_type": "default"}))).unwrap();
    assert_eq!((plain.rope_base, plain.rope_scaling), (500_000.0, RopeScaling::None));
}

#[test]
fn generation_config_replaces_the_end_tokens() {
    let read = |text: &str| read(&llama32_1b()).unwrap().with_generation(Path::new("g.json"), text);
    assert_eq!(read(r#"{"eos_token_id": [128001, 128009]}"#).unwrap().eos, [128001, 128009]);
    let kept = read(r#"{"temperature": 0.6}"#).unwrap();
    assert_eq!((kept.bos, kept.eos), (Some(128000), vec![128001]));
    assert!(read(r#"{"eos_token_id": -1}"#).unwrap_err().to_string().contains("eos_token_id"));
}

#[test]
fn other_models_are_refused_by_field_and_value() {
    refused(with("model_type", json!("qwen2")), &["model_type \"qwen2\"", "Llama 2"]);
    refused(with("architectures", json!(["MistralForCausalLM"])), &["MistralForCausalLM"]);
    refused(with("attention_bias", json!(true)), &["attention_bias true"]);
    refused(with("mlp_bias", json!(true)), &["mlp_bias true"]);
    refused(with("hidden_act", json!("gelu")), &["hidden_act \"gelu\"", "\"silu\""]);
    refused(with("quantization_config", json!({"quant_method": "awq"})), &["quant_method \"awq\""]);
    refused(with("partial_rotary_factor", json!(0.5)), &["partial_rotary_factor 0.5"]);
    let yarn = json!({"rope_type": "yarn", "factor": 4.0});
    refused(with("rope_scaling", yarn), &["rope_scaling.rope_type \"yarn\"", "llama3"]);
    let linear = json!({"type": "linear", "factor": 2.0});
    refused(with("rope_scaling", linear), &["rope_scaling.type \"linear\""]);
}

#[test]
fn impossible_sizes_are_refused() {
    refused(with("num_key_value_heads", json!(5)), &["32 query heads over 5"]);
    refused(with("head_dim", json!(63)), &["head width 63"]);
    refused(with("num_hidden_layers", json!(0)), &["num_hidden_layers 0"]);
    refused(with("hidden_size", json!(u64::MAX)), &["hidden_size 18446744073709551615"]);
    refused(with("vocab_size", json!("many")), &["'vocab_size' is \"many\""]);
    refused(with("hidden_size", json!(-1)), &["'hidden_size' is -1"]);
    let mut uneven = without("head_dim");
    uneven["num_attention_heads"] = json!(24);
    refused(uneven, &["hidden size 2048 over 24"]);
}

#[test]
fn a_missing_field_is_named() {
    let required = [
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "max_position_embeddings",
        "rms_norm_eps",
    ];
    for field in required {
        refused(without(field), &[&format!("'{field}' is missing")]);
    }
    let mut json = llama32_1b();
    json["rope_scaling"].as_object_mut().unwrap().remove("factor");
    refused(json, &["'rope_scaling.factor' is missing"]);
    refused(json!({}), &["'model_type' is missing"]);
    refused(json!([1]), &["not a JSON object"]);
}
