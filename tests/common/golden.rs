//! Greedy tokens of the trained model, from an independent forward pass in f32.

use serde::Deserialize;

#[derive(Deserialize)]
pub struct Golden {
    pub cases: Vec<Case>,
}

#[derive(Deserialize)]
pub struct Case {
    pub prompt: String,
    pub prompt_ids: Vec<u32>,
    pub greedy: Vec<u32>,
    /// By how much each token's logit exceeds the next.
    pub margin: Vec<f32>,
    pub first_top10_logits: Vec<(u32, f32)>,
}

pub fn golden() -> Golden {
    serde_json::from_str(include_str!("../fixtures/smollm2-greedy.json")).unwrap()
}
