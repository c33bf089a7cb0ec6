//! Sampling on the device: what the host would have chosen from the logits of the same steps.

use fewsync::engine::Engine;
use fewsync::generate::{Sampler, Sampling, argmax};
use fewsync::model::Model;
use fewsync::runner::{Batch, Runner};

use crate::gpu::gpu;
use crate::{engine, options, prefill, tokens};

#[test]
fn tokens_are_drawn_on_the_device() {
    let Some((_guard, device)) = gpu("sampling") else { return };
    let model = Model::open("random:smollm2,layers=2").unwrap();
    let vocab = model.config.vocab;
    let mut engine = engine(&model, &device, &options());
    let draw = |engine: &mut Engine, samplings: &[Sampling], n_steps: usize| -> Vec<Vec<u32>> {
        let mut samplers: Vec<Sampler> = samplings.iter().map(|&s| Sampler::new(s)).collect();
        let mut fed: Vec<u32> = (0..samplings.len() as u32).collect();
        for i in 0..samplings.len() {
            engine.truncate(i, 0).unwrap();
            prefill(engine, i, &tokens(20, i, vocab));
        }
        let mut steps = Vec::new();
        for _ in 0..n_steps {
            fed = engine.decode_sampled(&fed, &mut samplers).unwrap();
            steps.push(fed.clone());
        }
        steps
    };
    // What the host would have chosen from the logits of the same steps.
    let judge = |engine: &mut Engine, steps: &[Vec<u32>], check: &dyn Fn(usize, &[f32], u32)| {
        let n = steps[0].len();
        let mut fed: Vec<u32> = (0..n as u32).collect();
        for i in 0..n {
            engine.truncate(i, 0).unwrap();
            prefill(engine, i, &tokens(20, i, vocab));
        }
        for drawn in steps {
            let logits = engine.forward(&Batch::decode(&fed)).unwrap().logits;
            for (i, row) in logits.chunks(vocab).enumerate() {
                check(i, row, drawn[i]);
            }
            fed.clone_from(drawn);
        }
    };

    let greedy = draw(&mut engine, &[Sampling::GREEDY; 3], 30);
    judge(&mut engine, &greedy, &|_, row, token| assert_eq!(token, argmax(row)));

    let warm = Sampling { temperature: 1.5, top_k: 5, top_p: 1.0, seed: 11 };
    let samplings =
        [warm, Sampling::GREEDY, Sampling { seed: 12, ..warm }, Sampling { top_k: 0, top_p: 0.2, ..warm }];
    let mixed = draw(&mut engine, &samplings, 60);
    assert_eq!(mixed, draw(&mut engine, &samplings, 60), "a seed fixes the text");
    judge(&mut engine, &mixed, &|i, row, token| {
        let better = row.iter().filter(|&&x| x > row[token as usize]).count();
        match i {
            1 => assert_eq!(better, 0, "greedy"),
            3 => {
                let most = row[argmax(row) as usize];
                let weight = |x: f32| f64::from((x - most) / 1.5).exp();
                let above: f64 = row.iter().filter(|&&x| x > row[token as usize]).map(|&x| weight(x)).sum();
                let all: f64 = row.iter().map(|&x| weight(x)).sum();
                assert!(above / all < 0.2 + 1e-4, "outside the likeliest 0.2: {}", above / all);
            }
            _ => assert!(better < 5, "rank {better} is outside the likeliest five"),
        }
    });
    let differ = |a: usize, b: usize| mixed.iter().filter(|step| step[a] != step[b]).count();
    assert!(differ(0, 1) > 10 && differ(0, 2) > 10, "seeds and temperatures matter");
}
