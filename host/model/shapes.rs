//! Hyper-parameters of well-known Llama models, for models of random weights.

use super::{Config, RopeScaling};

/// The names that [`named`] knows, smallest model first.
pub const NAMES: [&str; 13] = [
    "tiny",
    "smollm2",
    "llama3.2-1b",
    "llama3.2-3b",
    "llama2-7b",
    "llama3-8b",
    "llama3.1-8b",
    "llama2-13b",
    "llama2-70b",
    "llama3-70b",
    "llama3.1-70b",
    "llama3-405b",
    "llama3.1-405b",
];

/// The shape of that name. `tiny` is none of the published ones: its 4 query heads, 2 key/value heads,
/// 5 granules of MLP columns and 8 of vocabulary split unevenly over 3 ranks.
pub fn named(name: &str) -> Option<Config> {
    let config = match name {
        "tiny" => Config { context: 1024, ..shape(128, 320, 2, (4, 2, 32), 512) },
        "smollm2" => Config {
            context: 8192,
            rope_base: 100_000.0,
            tied: true,
            ..shape(576, 1536, 30, (9, 3, 64), 49152)
        },
        "llama2-7b" => llama2(shape(4096, 11008, 32, (32, 32, 128), 32000)),
        "llama2-13b" => llama2(shape(5120, 13824, 40, (40, 40, 128), 32000)),
        "llama2-70b" => llama2(shape(8192, 28672, 80, (64, 8, 128), 32000)),
        "llama3-8b" => llama3(shape(4096, 14336, 32, (32, 8, 128), 128_256)),
        "llama3-70b" => llama3(shape(8192, 28672, 80, (64, 8, 128), 128_256)),
        "llama3.1-8b" => llama31(8.0, shape(4096, 14336, 32, (32, 8, 128), 128_256)),
        "llama3.1-70b" => llama31(8.0, shape(8192, 28672, 80, (64, 8, 128), 128_256)),
        // There is no 405B before 3.1; both names are in use.
        "llama3-405b" | "llama3.1-405b" => llama31(8.0, shape(16384, 53248, 126, (128, 8, 128), 128_256)),
        "llama3.2-1b" => Config { tied: true, ..llama31(32.0, shape(2048, 8192, 16, (32, 8, 64), 128_256)) },
        "llama3.2-3b" => Config { tied: true, ..llama31(32.0, shape(3072, 8192, 28, (24, 8, 128), 128_256)) },
        _ => return None,
    };
    Some(config)
}

/// Sizes alone; `heads` is (query heads, key/value heads, head width). A random model has no tokenizer,
/// so no special tokens.
fn shape(hidden: usize, ffn: usize, n_layers: usize, heads: (usize, usize, usize), vocab: usize) -> Config {
    let (n_heads, n_kv_heads, head_dim) = heads;
    Config {
        hidden,
        ffn,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        vocab,
        context: 0,
        rms_eps: 1e-5,
        rope_base: 10_000.0,
        rope_scaling: RopeScaling::None,
        tied: false,
        bos: None,
        eos: Vec::new(),
    }
}

fn llama2(shape: Config) -> Config {
    Config { context: 4096, ..shape }
}

fn llama3(shape: Config) -> Config {
    Config { context: 8192, rope_base: 500_000.0, ..shape }
}

fn llama31(factor: f32, shape: Config) -> Config {
    let rope_scaling =
        RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
    Config { context: 131_072, rope_scaling, ..llama3(shape) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Tensor;

    #[test]
    fn every_name_is_a_valid_shape() {
        for name in NAMES {
            named(name).unwrap().validate(Path::new(name)).unwrap();
        }
        assert_eq!(named("llama4"), None);
    }

    /// Parameter counts as the published checkpoints have them.
    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (name, want) in [
            ("smollm2", 134_515_008),
            ("llama2-7b", 6_738_415_616),
            ("llama2-13b", 13_015_864_320),
            ("llama2-70b", 68_976_648_192),
            ("llama3-8b", 8_030_261_248),
            ("llama3-70b", 70_553_706_496),
            ("llama3.1-405b", 405_853_388_800),
            ("llama3.2-1b", 1_235_814_400),
            ("llama3.2-3b", 3_212_749_824),
        ] {
            let config = named(name).unwrap();
            let count = |t: &Tensor| t.shape(&config).0 as u64 * t.shape(&config).1 as u64;
            assert_eq!(Tensor::all(&config).iter().map(count).sum::<u64>(), want, "{name}");
        }
    }
}
