//! The repository's own PTX: every kernel decodes, and some compute what they should.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::{Rig, params, shipped};
use half::bf16;
use ptx_emulator::memory::MemoryOptions;
use ptx_emulator::{Launch, MachineOptions, Module, Policy, RunError, Swizzle, TENSOR_MAP_BYTES, TensorMap};

const ARCHITECTURES: [&str; 2] = ["sm_80.ptx", "sm_90a.ptx"];

#[test]
fn every_kernel_of_both_architectures_decodes() {
    for name in ARCHITECTURES {
        let module = shipped(name);
        assert!(module.kernels().len() >= 32, "{name}");
        for kernel in module.kernels() {
            assert!(kernel.instructions() > 10 && kernel.param_bytes() > 0, "{name}: {}", kernel.name());
        }
    }
}

/// Numbers in (-1, 1) that bf16 holds, from a small generator.
fn numbers(count: usize, seed: u32) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bf16::from_f32((state >> 8) as f32 / (1 << 23) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

fn bytes(values: &[bf16]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks(2).map(|word| bf16::from_le_bytes(word.try_into().unwrap()).to_f32()).collect()
}

fn rmsnorm(name: &str, hidden: usize, policy: Policy) {
    let module = Arc::new(shipped(name));
    let mut rig = Rig::new(&module, MachineOptions { policy, seed: 7, ..MachineOptions::default() });
    let (x, weight) = (numbers(3 * hidden, 1), numbers(hidden, 2));
    let x_at = rig.upload(&bytes(&x), "x");
    let weight_at = rig.upload(&bytes(&weight), "weight");
    let out_at = rig.empty(6 * hidden as u64, "out");
    let params = params(&[x_at, 0, 0, weight_at, out_at], &[hidden as u32, 1e-5f32.to_bits()]);
    rig.run("rmsnorm_bf16", [3, 1, 1], [64, 1, 1], 0, &params).unwrap_or_else(|error| panic!("{error}"));
    let out = halves(&rig.download(out_at, 6 * hidden));
    for (row, out) in x.chunks(hidden).zip(out.chunks(hidden)) {
        let square = row.iter().map(|x| x.to_f64().powi(2)).sum::<f64>() / hidden as f64;
        for ((x, weight), out) in row.iter().zip(&weight).zip(out) {
            let exact = x.to_f64() / (square + 1e-5).sqrt() * weight.to_f64();
            assert!((f64::from(*out) - exact).abs() <= exact.abs() / 200.0 + 1e-6, "{out} is not {exact}");
        }
    }
}

#[test]
fn rmsnorm_is_right_for_odd_and_even_rows_in_all_schedules() {
    for name in ARCHITECTURES {
        for policy in [Policy::RoundRobin, Policy::Random, Policy::Adversarial] {
            rmsnorm(name, 576, policy);
            rmsnorm(name, 83, policy);
        }
    }
}

/// Runs a matrix product and compares it with f64 sums.
fn product(name: &str, kernel: &str, [m, n, k]: [usize; 3], grid: [u32; 3], threads: u32, shared: u32) {
    let module = Arc::new(shipped(name));
    let mut rig = Rig::new(&module, MachineOptions::default());
    let (a, w) = (numbers(m * k, 3), numbers(n * k, 4));
    let a_at = rig.upload(&bytes(&a), "a");
    let w_at = rig.upload(&bytes(&w), "w");
    let out_at = rig.empty(4 * (m * n) as u64, "out");
    let sizes = [m as u32, n as u32, k as u32, k as u32, n as u32, 0];
    let params = params(&[a_at, w_at, out_at, 0], &sizes);
    rig.run(kernel, grid, [threads, 1, 1], shared, &params)
        .unwrap_or_else(|error| panic!("{kernel}: {error}"));
    let out = floats(&rig.download(out_at, 4 * m * n));
    for i in 0..m {
        for j in 0..n {
            let terms = || (0..k).map(|l| a[i * k + l].to_f64() * w[j * k + l].to_f64());
            let (exact, scale): (f64, f64) = (terms().sum(), terms().map(f64::abs).sum());
            let found = f64::from(out[i * n + j]);
            assert!(
                (found - exact).abs() <= scale * 1e-5,
                "{kernel} {m}x{n}x{k} [{i}, {j}]: {found} is not {exact}"
            );
        }
    }
}

#[test]
fn products_are_right_for_odd_and_even_shapes() {
    for name in ARCHITECTURES {
        for [n, k] in [[64, 256], [37, 83], [3, 512]] {
            product(name, "gemv_bf16_m1_f32", [1, n, k], [(n as u32).div_ceil(4), 1, 1], 64, 0);
        }
        for [m, n, k] in [[8, 40, 128], [3, 17, 65]] {
            product(name, "gemv_bf16_m8_f32", [m, n, k], [(n as u32).div_ceil(16), 1, 1], 256, 0);
        }
        for [m, n, k] in [[16, 32, 64], [5, 33, 72], [18, 20, 67]] {
            let grid =
                |tile_m: u32, tile_n: u32| [(m as u32).div_ceil(tile_m), (n as u32).div_ceil(tile_n), 1];
            product(name, "gemm_bf16_16x32_f32", [m, n, k], grid(16, 32), 64, 48 << 10);
            product(name, "gemm_bf16_64x32_f32", [m, n, k], grid(64, 32), 128, 72 << 10);
            product(name, "gemm_bf16_128x128_f32", [m, n, k], grid(128, 128), 128, 96 << 10);
        }
    }
}

/// The suspicion works on real kernels: an output that is one element short is an error at the storing line.
#[test]
fn a_short_buffer_is_found() {
    let module = Arc::new(shipped("sm_80.ptx"));
    let mut rig = Rig::new(&module, MachineOptions::default());
    let x = rig.upload(&bytes(&numbers(64, 1)), "x");
    let out = rig.empty(126, "out");
    let params = params(&[x, 0, 0, x, out], &[64, 0]);
    let error = rig.run("rmsnorm_bf16", [1, 1, 1], [32, 1, 1], 0, &params).unwrap_err().to_string();
    assert!(
        error.contains("out of bounds") && error.contains("\"out\"") && error.contains("st.global"),
        "{error}"
    );
}

/// What a kernel makes of `out`, and of the products of a row of `a` with the rows of `w`.
struct Epilogue {
    name: &'static str,
    /// Rows of `w` for one element of `out`, and bytes of that.
    rows: usize,
    bytes: usize,
    apply: fn(old: f32, products: &[f32]) -> f32,
}

const ADD: Epilogue = Epilogue { name: "add", rows: 1, bytes: 2, apply: |old, of| old + of[0] };
const STORE: Epilogue = Epilogue { name: "store", rows: 1, bytes: 2, apply: |_, of| of[0] };
const F32: Epilogue = Epilogue { name: "f32", rows: 1, bytes: 4, apply: |_, of| of[0] };
const SWIGLU: Epilogue =
    Epilogue { name: "swiglu", rows: 2, bytes: 2, apply: |_, of| of[0] / (1.0 + (-of[0]).exp()) * of[1] };

/// A product by a kernel of warpgroups, with whole elements of `out`, its grid's first axis a cluster that shares k; every
/// access in order.
struct WarpgroupProduct<'a> {
    module: &'a Arc<Module>,
    tile: &'a str,
    epilogue: &'a Epilogue,
    shape: (usize, usize, usize),
    grid: [u32; 3],
    threads: u32,
    policy: Policy,
    /// The kernel has tensor maps of both matrices.
    has_maps: bool,
}

impl WarpgroupProduct<'_> {
    fn run(&self) -> Result<(), RunError> {
        let &Self { module, tile, epilogue, shape: (m, n, k), grid, threads, policy, .. } = self;
        let memory = MemoryOptions { race: true, ..MemoryOptions::default() };
        let max_instructions = Some(5_000_000);
        let mut rig = Rig::new(
            module,
            MachineOptions { policy, seed: 3, memory, max_instructions, ..MachineOptions::default() },
        );
        let n = n.next_multiple_of(epilogue.rows);
        let width = n / epilogue.rows;
        let (a, w, old) = (numbers(m * k, 1), numbers(n * k, 2), numbers(m * width, 3));
        let [a_at, w_at] = [(&a, "a"), (&w, "w")].map(|(values, name)| rig.upload(&bytes(values), name));
        let out_at = match epilogue.bytes {
            2 => rig.upload(&bytes(&old), "out"),
            size => rig.empty((m * width * size) as u64, "out"),
        };
        let sizes = [m, n, k, k, width, 0].map(|size| size as u32);
        let mut params = params(&[a_at, w_at, out_at, 0], &sizes);
        if tile.starts_with("128x") {
            params.extend([u32::from(self.has_maps), 0].map(u32::to_le_bytes).as_flattened());
            let maps = if self.has_maps { self.maps(a_at, w_at) } else { [[0; TENSOR_MAP_BYTES]; 2] };
            params.extend(maps.as_flattened());
        }
        let name = format!("wgmma_bf16_{tile}_{}", epilogue.name);
        let kernel = rig.machine.kernel(rig.module, &name).unwrap();
        let launch = Launch::new(kernel, grid, [threads, 1, 1], params);
        let launch = Launch { cluster: [grid[0], 1, 1], dynamic_shared_bytes: 200 << 10, ..launch };
        rig.machine.launch(rig.stream, &launch).unwrap_or_else(|error| panic!("{name}: {error}"));
        rig.machine.run()?;
        let out = rig.download(out_at, epilogue.bytes * m * width);
        let out = if epilogue.bytes == 4 { floats(&out) } else { halves(&out) };
        for (at, out) in out.into_iter().enumerate() {
            let a = &a[at / width * k..][..k];
            let product = |row: usize| -> f32 {
                a.iter().zip(&w[row * k..][..k]).map(|(a, w)| a.to_f32() * w.to_f32()).sum()
            };
            let first = at % width * epilogue.rows;
            let products: Vec<f32> = (first..first + epilogue.rows).map(product).collect();
            let expected = (epilogue.apply)(old[at].to_f32(), &products);
            let close = 0.01 * expected.abs().max(1.0);
            assert!((out - expected).abs() <= close, "{name} {m}x{n}x{k} {at}: {out} and {expected}");
        }
        Ok(())
    }

    /// Of tokens, and of weights whose row 8t + 2j + e lies at row 8j + 2t + e of each 32.
    fn maps(&self, a: u64, w: u64) -> [[u8; TENSOR_MAP_BYTES]; 2] {
        let (m, n, k) = self.shape;
        let [m, n, row_bytes] = [m, n, 2 * k].map(|size| size as u64);
        let tile_rows: u32 = self.tile[4..].parse().unwrap();
        let encode = |address, rows: &[u64], strides_rows: &[u64], box_rows: &[u32]| {
            let dims = [&[k as u64], rows].concat();
            let strides_bytes = strides_rows.iter().map(|rows| rows * row_bytes).collect();
            let (box_dims, swizzle) = ([&[64], box_rows].concat(), Swizzle::B128);
            TensorMap { address, element_bytes: 2, dims, strides_bytes, box_dims, swizzle }.encode().unwrap()
        };
        let weights = encode(w, &[2, 4, 4, n / 32], &[1, 8, 2, 32], &[2, 4, 4, tile_rows / 32]);
        [encode(a, &[m], &[1], &[128]), weights]
    }
}

/// Whole eights of columns and others, one block and clusters, tiles in turn, with maps and without; no order reveals a
/// race.
#[test]
fn products_of_warpgroups_are_right_without_races() {
    let module = Arc::new(shipped("sm_90a.ptx"));
    let run = |product: WarpgroupProduct<'_>| product.run().unwrap_or_else(|error| panic!("{error}"));
    for policy in [Policy::RoundRobin, Policy::Adversarial] {
        for shape @ (m, n, k) in [(3, 64, 100), (37, 264, 136), (5, 67, 65), (7, 288, 72), (131, 32, 520)] {
            let tiles = |columns: u32| (n as u32).div_ceil(columns);
            let m_tiles = |tokens: u32| (m as u32).div_ceil(tokens);
            let product = |tile, epilogue, grid, threads, has_maps| {
                run(WarpgroupProduct {
                    module: &module,
                    tile,
                    epilogue,
                    shape,
                    grid,
                    threads,
                    policy,
                    has_maps,
                });
            };
            for parts in [1, 3] {
                for (tile, tokens, epilogue) in [("32x128", 32, &ADD), ("64x128", 64, &SWIGLU)] {
                    product(tile, epilogue, [parts, m_tiles(tokens), tiles(128)], 256, false);
                }
            }
            let has_maps = k % 8 == 0 && n % 32 == 0;
            for (tile, columns, epilogue) in
                [("128x128", 128, &ADD), ("128x192", 192, &STORE), ("128x256", 256, &F32)]
            {
                let count = m_tiles(128) * tiles(columns);
                for grid in [[1, count.min(2), 1], [2, count, 1]] {
                    product(tile, epilogue, grid, 384, has_maps);
                }
            }
        }
    }
}

/// The kernel alone, and how often `mark` occurs in it.
fn alone(name: &str, mark: &str) -> (String, usize) {
    let path = format!("{}/../ptx/sm_90a.ptx", env!("CARGO_MANIFEST_DIR"));
    let source = std::fs::read_to_string(path).unwrap();
    let mut entries = source.split(".visible .entry ");
    let head = entries.next().unwrap();
    let kernel = entries.find(|text| text.starts_with(&format!("{name}("))).unwrap();
    (format!("{head}.visible .entry {kernel}"), kernel.matches(mark).count())
}

/// `text` with `change` made to what follows the `index`-th `mark`, up to the end of that instruction.
fn changed(text: &str, mark: &str, index: usize, change: impl Fn(&str) -> String) -> String {
    let (at, _) = text.match_indices(mark).nth(index).unwrap();
    let end = at + text[at..].find(';').unwrap() + 1;
    [&text[..at], &change(&text[at..end]), &text[end..]].concat()
}

/// Of the three loops that wait for a stage (to fill it by maps, to fill it by threads, to multiply it), those on the way
/// that is taken are found out when they do not wait.
#[test]
fn products_for_prompts_need_every_wait() {
    const MARK: &str = "mbarrier.try_wait.parity.shared::cta.b64 %ended,";
    let (text, waits) = alone("wgmma_bf16_128x128_f32", MARK);
    assert_eq!(waits, 3);
    let is_sound = |index, has_maps| {
        let source = changed(&text, MARK, index, |_| "setp.eq.b32 %ended, 0, 0;".to_owned());
        let module = Arc::new(Module::new("k.ptx", &source).unwrap());
        let (epilogue, policy) = (&F32, Policy::Random);
        // More columns than six stages hold.
        let (tile, shape, grid, threads) = ("128x128", (3, 32, 520), [1, 1, 1], 384);
        WarpgroupProduct { module: &module, tile, epilogue, shape, grid, threads, policy, has_maps }
            .run()
            .is_ok()
    };
    for has_maps in [false, true] {
        assert_eq!((0..waits).filter(|&index| is_sound(index, has_maps)).count(), 1, "maps: {has_maps}");
    }
}

/// A stage whose barrier expects other bytes than its boxes have is waited for in vain.
#[test]
fn products_for_prompts_count_the_bytes_of_their_boxes() {
    const MARK: &str = "mbarrier.arrive.expect_tx.shared::cta.b64 _,";
    let (text, count) = alone("wgmma_bf16_128x192_add", MARK);
    for index in 0..count {
        let source = changed(&text, MARK, index, |line| {
            let (rest, bytes) = line.trim_end_matches(';').rsplit_once(' ').unwrap();
            format!("{{ .reg .b32 %more; add.u32 %more, {bytes}, 16;\n{rest} %more; }}")
        });
        let module = Arc::new(Module::new("k.ptx", &source).unwrap());
        let (tile, epilogue, shape, grid, threads) = ("128x192", &ADD, (3, 32, 520), [1, 1, 1], 384);
        let policy = Policy::RoundRobin;
        let product = WarpgroupProduct {
            module: &module,
            tile,
            epilogue,
            shape,
            grid,
            threads,
            policy,
            has_maps: true,
        };
        let error = product.run().unwrap_err();
        assert!(
            matches!(error, RunError::Deadlock(_)) && error.to_string().contains("16 bytes are missing"),
            "{error}"
        );
    }
}
