use proptest::prelude::*;

use super::super::TensorKind;
use super::*;

fn whole(model: &RandomModel, tensor: Tensor) -> Vec<f32> {
    let (rows, cols) = tensor.shape(model.config());
    let mut out = vec![0.0; rows * cols];
    model.read_f32(tensor, 0..rows, 0..cols, &mut out);
    out
}

#[test]
fn a_specification_sets_shape_layers_and_seed() {
    let model = RandomModel::from_spec("random:llama3-8b,layers=3,seed=7").unwrap();
    assert_eq!((model.config.n_layers, model.config.hidden, model.seed), (3, 4096, 7));
    for (spec, needle) in [
        ("random:gpt2", "llama3-8b"),
        ("random:", "tiny"),
        ("random:tiny,layers=x", "'layers=x' is not a whole number"),
        ("random:tiny,layers=0", "number of layers 0"),
        ("random:tiny,heads=2", "'heads=2' is not an option"),
        ("random:tiny,", "'' is not an option"),
    ] {
        let message = RandomModel::from_spec(spec).unwrap_err().to_string();
        assert!(message.contains(needle), "{message}");
    }
}

/// The formula of the module's description, written out for single values.
#[test]
fn values_are_those_of_the_description() {
    let model = RandomModel::from_spec("random:tiny,seed=3").unwrap();
    let tensor = Tensor::block(TensorKind::Down, 1);
    let key = TensorKey::new(3, tensor);
    let values = whole(&model, tensor);
    for (row, col) in [(0u32, 0u32), (5, 319), (127, 64)] {
        let (k0, k1) = (mix(row ^ key.0), mix(row ^ key.1));
        let mut x = col.wrapping_add(k0);
        x ^= x >> 16;
        x = x.wrapping_mul(0x21f0aaad);
        x ^= x >> 15;
        x ^= k1;
        x = x.wrapping_mul(0x735a2d97);
        let unit = f64::from(x as i32 >> 8) / f64::from(1 << 23);
        let want = bf16::from_f32((unit * (3f64 / 320.0).sqrt()) as f32).to_f32();
        let got = values[(row * 320 + col) as usize];
        assert!((got - want).abs() <= want.abs() / 128.0, "{row},{col}: {got} for {want}");
    }
}

/// Pins the generator: kernels repeat it, and saved plans carry fingerprints of its models.
#[test]
fn the_generator_does_not_change() {
    let model = RandomModel::from_spec("random:tiny,seed=1").unwrap();
    let mut row = [0.0; 4];
    model.read_f32(Tensor::block(TensorKind::Q, 0), 1..2, 2..6, &mut row);
    // From a second implementation of the description.
    assert_eq!(row, [0.125, -0.020874023, 0.10839844, 0.08203125]);
}

#[test]
fn moments_are_as_described() {
    let model = RandomModel::from_spec("random:tiny,seed=11").unwrap();
    for kind in [TensorKind::Embedding, TensorKind::Q, TensorKind::Down, TensorKind::Up] {
        let tensor = Tensor::block(kind, 0);
        let cols = tensor.shape(model.config()).1;
        let values = whole(&model, tensor);
        let n = values.len() as f64;
        let scaled = values.iter().map(|&v| f64::from(v) * (cols as f64).sqrt()).collect::<Vec<_>>();
        let mean = scaled.iter().sum::<f64>() / n;
        let variance = scaled.iter().map(|v| v * v).sum::<f64>() / n;
        // Four standard errors: var(u) = 1, var(u²) = 0.8 for the uniform distribution of variance 1.
        assert!(mean.abs() < 4.0 / n.sqrt(), "{kind:?}: mean {mean}");
        assert!((variance - 1.0).abs() < 4.0 * (0.8 / n).sqrt(), "{kind:?}: variance {variance}");
        for lag in [1, 2, cols, cols + 1, 2 * cols] {
            let products = scaled.iter().zip(&scaled[lag..]).map(|(a, b)| a * b);
            let correlation = products.sum::<f64>() / n;
            assert!(correlation.abs() < 4.0 / n.sqrt(), "{kind:?}: lag {lag}: {correlation}");
        }
    }
    let gains = whole(&model, Tensor::block(TensorKind::MlpNorm, 1));
    assert!(gains.iter().all(|g| (0.898..=1.102).contains(g)) && gains.iter().any(|&g| g != gains[0]));
}

#[test]
fn seeds_tensors_and_layers_differ() {
    let models = [0, 1].map(|seed| RandomModel::new(shapes::named("tiny").unwrap(), seed));
    let tensors = [(TensorKind::Q, 0), (TensorKind::Q, 1), (TensorKind::O, 0)];
    let all: Vec<_> = models
        .iter()
        .flat_map(|m| tensors.map(|(kind, layer)| whole(m, Tensor::block(kind, layer))))
        .collect();
    for (i, a) in all.iter().enumerate() {
        for b in &all[..i] {
            let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
            assert!(equal < a.len() / 50, "{equal} of {} equal", a.len());
        }
    }
    assert_ne!(models[0].fingerprint().unwrap(), models[1].fingerprint().unwrap());
    let fewer = RandomModel::from_spec("random:tiny,layers=1").unwrap();
    assert_ne!(models[0].fingerprint().unwrap(), fewer.fingerprint().unwrap());
    let again = RandomModel::from_spec("tiny,seed=0").unwrap();
    assert_eq!(models[0].fingerprint().unwrap(), again.fingerprint().unwrap());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Any shard equals that rectangle of the whole tensor, in both precisions, exactly.
    #[test]
    fn shards_are_slices_of_the_whole(
        kind in prop::sample::select(&super::super::tensor::BLOCK_TENSORS[..]),
        seed in any::<u64>(),
        corners in [0usize..=100, 0usize..=100, 0usize..=100, 0usize..=100],
    ) {
        let model = RandomModel::new(shapes::named("tiny").unwrap(), seed);
        let tensor = Tensor::block(kind, 1);
        let (n_rows, n_cols) = tensor.shape(model.config());
        let range = |a: usize, b: usize, n: usize| a.min(b) * n / 100..a.max(b) * n / 100;
        let (rows, cols) = (range(corners[0], corners[1], n_rows), range(corners[2], corners[3], n_cols));
        let values = whole(&model, tensor);
        let mut part = vec![0.0; rows.len() * cols.len()];
        model.read_f32(tensor, rows.clone(), cols.clone(), &mut part);
        let mut narrow = vec![bf16::ZERO; part.len()];
        model.read_bf16(tensor, rows.clone(), cols.clone(), &mut narrow);
        let want = rows.flat_map(|row| cols.clone().map(move |col| row * n_cols + col));
        for ((at, part), narrow) in want.zip(&part).zip(&narrow) {
            prop_assert_eq!(values[at], *part);
            prop_assert_eq!(narrow.to_f32(), *part);
        }
    }
}
