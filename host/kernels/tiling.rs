//! How a product is divided among blocks.

use super::{MAX_CLUSTER, Target};

/// The part of the output that one block of a tensor-core kernel makes: rows of `a` × rows of `w`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 16 × 32, by `mma.sync`.
    T16x32,
    /// 64 × 32, by `mma.sync`.
    T64x32,
    /// 128 × 128, by `mma.sync`.
    T128x128,
    /// 32 × 128, by `wgmma`, weights streamed.
    W32x128,
    /// 64 × 128, by `wgmma`, weights streamed.
    W64x128,
    /// 128 × 128, by `wgmma`.
    W128x128,
    /// 128 × 192, by `wgmma`.
    W128x192,
    /// 128 × 256, by `wgmma`.
    W128x256,
}

/// Which kernel a tile belongs to: what its grid means, and how fast it is on an H200.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kernel {
    /// Grid (m tiles, n tiles), several blocks a multiprocessor.
    Tiled {
        /// Blocks that a multiprocessor holds at once.
        resident: u32,
        /// Time of a round with one block a multiprocessor, in ns per column of k.
        first_ns: f32,
        /// What each further block of the round adds.
        more_ns: f32,
        /// Before the first round.
        launch_us: f32,
    },
    /// Grid (parts of k, m tiles, n tiles), a block a multiprocessor.
    Stream(Speed),
    /// Grid (parts of k, blocks, 1), a block a multiprocessor; with one part blocks take several tiles.
    Prefill(Speed),
}

/// What a block of a `wgmma` kernel takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Speed {
    /// For each column of k.
    column_ns: f32,
    /// Before the first tile, for each tile, and for each of several parts of k that are added up.
    launch_us: f32,
    tile_us: f32,
    part_us: f32,
}

/// Of one block.
pub(super) struct Shape {
    pub(super) m: u32,
    pub(super) n: u32,
    pub(super) threads: u32,
    pub(super) stages: u32,
    pub(super) kernel: Kernel,
}

/// Columns of k in one stage.
const STAGE_COLUMNS: u32 = 64;
/// The numbers of parts that were measured.
const PARTS: [u32; 7] = [1, 2, 3, 4, 5, 6, MAX_CLUSTER];
/// What an H200's memory delivers at best, in bytes per µs.
const MEMORY_BYTES_PER_US: f32 = 4.35e6;

impl Tile {
    /// All tiles.
    pub const ALL: [Self; 8] = [
        Self::T16x32,
        Self::T64x32,
        Self::T128x128,
        Self::W32x128,
        Self::W64x128,
        Self::W128x128,
        Self::W128x192,
        Self::W128x256,
    ];

    /// Whether it takes Hopper's `wgmma`, which the PTX for sm_90a alone has.
    pub const fn needs_wgmma(self) -> bool {
        !matches!(self, Self::T16x32 | Self::T64x32 | Self::T128x128)
    }

    /// Whether blocks can share k.
    pub const fn takes_parts(self) -> bool {
        self.needs_wgmma()
    }

    pub(super) const fn shape(self) -> Shape {
        match self {
            Self::T16x32 => Shape::new(16, 32, 64, 8, Kernel::tiled(4, 4.2, 0.4, 0.15)),
            Self::T64x32 => Shape::new(64, 32, 128, 6, Kernel::tiled(3, 8.15, 0.0, 0.65)),
            Self::T128x128 => Shape::new(128, 128, 128, 3, Kernel::tiled(2, 16.4, 4.6, 1.0)),
            Self::W32x128 => Shape::new(32, 128, 256, 10, Kernel::Stream(Speed::new(4.15, 2.45, 0.0, 0.27))),
            Self::W64x128 => Shape::new(64, 128, 256, 8, Kernel::Stream(Speed::new(4.32, 2.45, 0.42, 0.55))),
            Self::W128x128 => {
                Shape::new(128, 128, 384, 6, Kernel::Prefill(Speed::new(5.88, 2.62, 0.47, 0.95)))
            }
            Self::W128x192 => {
                Shape::new(128, 192, 384, 5, Kernel::Prefill(Speed::new(8.49, 2.79, 0.92, 1.36)))
            }
            Self::W128x256 => {
                Shape::new(128, 256, 384, 4, Kernel::Prefill(Speed::new(10.06, 3.52, 1.77, 2.35)))
            }
        }
    }

    /// Whether all blocks of a kernel by `mma.sync` are resident together.
    fn runs_at_once(self, m: u32, n: u32, sm_count: u32) -> bool {
        let shape = self.shape();
        let Kernel::Tiled { resident, .. } = shape.kernel else { return true };
        m.div_ceil(shape.m) * n.div_ceil(shape.n) <= resident * sm_count
    }

    /// The estimated time of a product in µs with k in so many parts; none if their clusters are not all there at once.
    fn estimate_us(self, (m, n, k): (u32, u32, u32), parts: u32, sm_count: u32) -> Option<f32> {
        let shape = self.shape();
        let tiles = m.div_ceil(shape.m) * n.div_ceil(shape.n);
        let (Kernel::Stream(speed) | Kernel::Prefill(speed)) = shape.kernel else {
            return (parts == 1).then(|| shape.kernel.rounds_us(tiles.div_ceil(sm_count), k));
        };
        let at_once = clusters_at_once(parts, sm_count);
        if parts > 1 && tiles > at_once || parts > sm_count {
            return None;
        }
        let columns = k.div_ceil(STAGE_COLUMNS).div_ceil(parts) * STAGE_COLUMNS;
        let tile_us = columns as f32 * speed.column_ns / 1e3 + speed.tile_us;
        let memory_us = 2.0 * n as f32 * k as f32 / MEMORY_BYTES_PER_US;
        let parts_us = if parts > 1 { parts as f32 * speed.part_us } else { 0.0 };
        Some(speed.launch_us + (tiles.div_ceil(at_once) as f32 * tile_us).max(memory_us) + parts_us)
    }
}

impl Speed {
    const fn new(column_ns: f32, launch_us: f32, tile_us: f32, part_us: f32) -> Self {
        Self { column_ns, launch_us, tile_us, part_us }
    }
}

impl Shape {
    const fn new(m: u32, n: u32, threads: u32, stages: u32, kernel: Kernel) -> Self {
        Self { m, n, threads, stages, kernel }
    }
}

impl Kernel {
    const fn tiled(resident: u32, first_ns: f32, more_ns: f32, launch_us: f32) -> Self {
        Self::Tiled { resident, first_ns, more_ns, launch_us }
    }

    /// Rounds of resident blocks, the last one perhaps not full.
    fn rounds_us(self, blocks_per_sm: u32, k: u32) -> f32 {
        let Self::Tiled { resident, first_ns, more_ns, launch_us } = self else { return f32::INFINITY };
        let round = |blocks: u32| first_ns + more_ns * (blocks - 1) as f32;
        let (full, rest) = (blocks_per_sm / resident, blocks_per_sm % resident);
        let columns_ns = full as f32 * round(resident) + if rest > 0 { round(rest) } else { 0.0 };
        launch_us + k as f32 * columns_ns / 1e3
    }
}

/// Clusters of so many blocks that run at the same time, a block a multiprocessor. A cluster lies within a graphics
/// processing cluster, and those are of unequal sizes: an eighth of an H200's multiprocessors is left over by clusters
/// of more than two.
fn clusters_at_once(blocks: u32, sm_count: u32) -> u32 {
    let usable = if blocks > 2 { sm_count * 7 / 8 } else { sm_count };
    (usable / blocks).max(1)
}

/// A tile, and how many blocks make the output of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tiling {
    /// Of one block.
    pub tile: Tile,
    /// Blocks that share k and add up in the order of their ranks, 1 to 8; above 1 only where [`Tile::takes_parts`].
    pub k_parts: u32,
    /// Blocks at most, at least one: where a tile needs no cluster, those for prompts take several in turn, and as many
    /// blocks as there are multiprocessors are best.
    pub max_blocks: u32,
}

impl Tiling {
    /// This tile, one block for each.
    pub const fn of(tile: Tile) -> Self {
        Self { tile, k_parts: 1, max_blocks: u32::MAX }
    }

    /// What is done first with the product of `m` × `n` over `k` on a device, by times measured on an H200 (m from 8 to
    /// 2048, the products of SmolLM2, Llama 3.2 1B, 3 8B and 3 70B at degrees 1, 2 and 8); only their ratios matter.
    ///
    /// Kernels that follow each other are of one kind. With a product over `wgmma` among others by `mma.sync` the decode
    /// step of Llama 3 8B took longer than the sum of its kernels: presumably blocks over `wgmma`, which fill a
    /// multiprocessor and are launched early, leave no room to the later blocks of a predecessor in several rounds.
    pub fn choose(m: u32, n: u32, k: u32, target: Target) -> Self {
        let sm_count = target.sm_count.max(1);
        let over_wgmma = target.has_wgmma && m > target.gemv_rows;
        let tiles = Tile::ALL.into_iter().filter(|tile| match tile.needs_wgmma() {
            true => over_wgmma,
            false => !over_wgmma || tile.runs_at_once(m, n, sm_count),
        });
        let estimates = tiles.flat_map(|tile| {
            PARTS
                .into_iter()
                .filter_map(move |parts| Some((tile, parts, tile.estimate_us((m, n, k), parts, sm_count)?)))
        });
        let fastest = estimates.min_by(|a, b| a.2.total_cmp(&b.2));
        let (tile, k_parts, _) = fastest.unwrap_or((Tile::T128x128, 1, 0.0));
        Self { tile, k_parts, max_blocks: sm_count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const H200: Target = Target::new(132, true);
    const PORTABLE: Target = Target::new(132, false);

    /// Where measurements differ by more than a tenth, the fastest is chosen: (m, n, the fastest).
    #[test]
    fn tiles_without_wgmma_are_the_fastest_measured() {
        for (m, n, fastest) in [
            (16, 4096, Tile::T16x32),
            (64, 4096, Tile::T16x32),
            (192, 4096, Tile::T64x32),
            (1024, 4096, Tile::T128x128),
            (32, 28_672, Tile::T16x32),
            (128, 28_672, Tile::T128x128),
            (1024, 28_672, Tile::T128x128),
            (256, 6144, Tile::T64x32),
            (512, 6144, Tile::T128x128),
            (256, 960, Tile::T16x32),
            (1024, 960, Tile::T64x32),
            (512, 3072, Tile::T64x32),
            (1024, 3072, Tile::T128x128),
            (1024, 576, Tile::T64x32),
        ] {
            let chosen = Tiling::choose(m, n, 4096, PORTABLE);
            assert_eq!((chosen.tile, chosen.k_parts), (fastest, 1), "{m} × {n}");
        }
    }

    /// (m, n, k, the fastest tile and parts measured.)
    #[test]
    fn tiles_with_wgmma_are_the_fastest_measured() {
        for (m, n, k, tile, k_parts) in [
            (16, 3072, 576, Tile::T16x32, 1),
            (16, 6144, 4096, Tile::W32x128, 2),
            (16, 4096, 4096, Tile::W32x128, 3),
            (16, 1280, 8192, Tile::W32x128, 8),
            (64, 6144, 4096, Tile::W64x128, 2),
            (64, 28_672, 4096, Tile::W64x128, 1),
            (64, 4096, 14_336, Tile::W64x128, 3),
            (128, 6144, 4096, Tile::W128x128, 2),
            (128, 4096, 14_336, Tile::W128x128, 3),
            (256, 4096, 14_336, Tile::W128x128, 2),
            (512, 1280, 8192, Tile::W128x192, 4),
            (512, 4096, 4096, Tile::W128x128, 1),
            (512, 6144, 4096, Tile::W128x192, 1),
            (512, 8192, 8192, Tile::W128x256, 1),
            (1024, 6144, 4096, Tile::W128x192, 1),
            (2048, 4096, 14_336, Tile::W128x256, 1),
            (2048, 28_672, 4096, Tile::W128x256, 1),
        ] {
            let chosen = Tiling::choose(m, n, k, H200);
            assert_eq!((chosen.tile, chosen.k_parts), (tile, k_parts), "{m} × {n} × {k}");
        }
    }

    #[test]
    fn kernels_over_wgmma_follow_none_of_several_rounds() {
        for n in [4096, 6144, 28_672, 128_256] {
            assert!(!Tiling::choose(1, n, 4096, H200.for_hidden(4096)).tile.needs_wgmma(), "1 × {n}");
            for m in [1, 2, 8, 16] {
                assert!(Tiling::choose(m, n, 4096, H200).tile.needs_wgmma(), "{m} × {n}");
            }
        }
        assert_eq!(Tiling::choose(16, 28_672, 4096, PORTABLE).tile, Tile::T16x32);
    }

    #[test]
    fn all_blocks_of_a_divided_product_run_at_once() {
        for sm_count in [1, 4, 78, 114, 132] {
            for (m, n, k) in
                [(1, 1, 1), (9, 128, 64), (64, 4096, 4096), (300, 1280, 8192), (4096, 28_672, 4096)]
            {
                let Tiling { tile, k_parts, .. } = Tiling::choose(m, n, k, Target::new(sm_count, true));
                let tiles = m.div_ceil(tile.shape().m) * n.div_ceil(tile.shape().n);
                assert!(k_parts == 1 || tiles * k_parts <= sm_count, "{m} × {n} on {sm_count}: {tile:?}");
                assert!((1..=MAX_CLUSTER).contains(&k_parts));
            }
        }
    }
}
