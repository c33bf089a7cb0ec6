//! Greedy tokens of the trained model against an independent forward pass, at every kind of split.
#![allow(clippy::unwrap_used)]

mod common;

use common::golden::{Case, golden};
use common::{load, shape, smollm2};
use fewsync::runner::{Batch, Runner};
use fewsync::spd::SpdSpec;

/// Tokens may differ where two logits are closer than this.
const MARGIN: f32 = 0.05;

#[test]
fn prompts_become_the_golden_ids() {
    let model = smollm2();
    for case in golden().cases {
        assert_eq!(model.tokenizer.encode(&case.prompt).unwrap(), case.prompt_ids, "{}", case.prompt);
    }
}

#[test]
fn greedy_tokens_at_every_degree() {
    let model = smollm2();
    let golden = golden();
    for tp in [1, 2, 3, 4, 8, 9] {
        let mut runner = load(&model, shape(1, tp), &SpdSpec::None);
        for case in &golden.cases {
            let compared = follow(&mut runner, case);
            assert!(compared >= 20, "tp {tp}, '{}': only {compared} tokens could be compared", case.prompt);
        }
    }
}

/// Feeds the golden tokens and compares each with the likeliest where the margin tells them apart; how
/// many were compared.
fn follow(runner: &mut dyn Runner, case: &Case) -> usize {
    runner.truncate(0, 0).unwrap();
    let mut logits = runner.forward(&Batch::prefill(0, &case.prompt_ids)).unwrap().logits;
    for &(id, expected) in &case.first_top10_logits {
        let seen = logits[id as usize];
        assert!((seen - expected).abs() < 0.01, "'{}': logit of {id} is {seen}, not {expected}", case.prompt);
    }
    let mut compared = 0;
    for (step, (&token, &margin)) in case.greedy.iter().zip(&case.margin).enumerate() {
        if margin > MARGIN {
            let seen = fewsync::generate::argmax(&logits);
            assert_eq!(seen, token, "'{}', step {step}, margin {margin}, tp {}", case.prompt, runner.tp());
            compared += 1;
        }
        logits = runner.forward(&Batch::decode(&[token])).unwrap().logits;
    }
    compared
}
