//! Paged KV caches whose pages lie anywhere, and where unused ones are poison.

use half::bf16;

use super::reference::widen;
use super::rig::{Guarded, Rig};
use crate::driver::Result;
use crate::kernels::{HeadDim, PageSize, PagedKv};

/// The layout of a cache: `[n_pages, n_kv_heads, page_size, head_dim]`.
pub(super) struct Layout {
    pub(super) n_kv_heads: usize,
    pub(super) page_size: usize,
    pub(super) head_dim: HeadDim,
    block_table: Vec<u32>,
    max_pages: usize,
    n_pages: usize,
}

impl Layout {
    /// Room for these many positions of each sequence. The table's unused entries name one more page, which
    /// nobody writes.
    pub(super) fn new(
        rig: &Rig<'_>,
        lens: &[usize],
        n_kv_heads: usize,
        page_size: usize,
        head_dim: HeadDim,
    ) -> Self {
        let pages: Vec<usize> = lens.iter().map(|len| len.div_ceil(page_size)).collect();
        let (n_used, max_pages) = (pages.iter().sum(), pages.iter().max().map_or(0, |most| most + 1));
        let mut order = rig.permutation(n_used).into_iter();
        let mut block_table = Vec::new();
        for used in pages {
            block_table.extend(order.by_ref().take(used));
            block_table.extend((used..max_pages).map(|_| n_used as u32));
        }
        Self { n_kv_heads, page_size, head_dim, block_table, max_pages, n_pages: n_used + 1 }
    }

    pub(super) fn len(&self) -> usize {
        self.n_pages * self.n_kv_heads * self.page_size * self.width()
    }

    pub(super) fn width(&self) -> usize {
        self.head_dim.get() as usize
    }

    /// The element at which the row of a position begins.
    pub(super) fn row(&self, sequence: usize, kv_head: usize, position: usize) -> usize {
        let page = self.block_table[sequence * self.max_pages + position / self.page_size] as usize;
        ((page * self.n_kv_heads + kv_head) * self.page_size + position % self.page_size) * self.width()
    }
}

/// Keys and values of a layout, and their block table, on the device.
pub(super) struct Cache {
    pub(super) layout: Layout,
    pub(super) k: Guarded<bf16>,
    pub(super) v: Guarded<bf16>,
    block_table: Guarded<u32>,
}

impl Cache {
    pub(super) fn poisoned(rig: &Rig<'_>, layout: Layout) -> Result<Self> {
        let block_table = rig.holding(&layout.block_table)?;
        let (k, v) = (rig.poisoned(layout.len())?, rig.poisoned(layout.len())?);
        Ok(Self { layout, k, v, block_table })
    }

    /// Random up to each sequence's length and NaN beyond, also within the last page; with the host's copy.
    pub(super) fn random(rig: &Rig<'_>, layout: Layout, lens: &[usize]) -> Result<(Self, HostCache)> {
        let fill = || {
            let random = rig.random_bf16(layout.len(), 1.0);
            let mut data = vec![bf16::NAN; layout.len()];
            for (sequence, &len) in lens.iter().enumerate() {
                for (kv_head, position) in (0..layout.n_kv_heads).flat_map(|h| (0..len).map(move |p| (h, p)))
                {
                    let row = layout.row(sequence, kv_head, position);
                    data[row..][..layout.width()].copy_from_slice(&random[row..][..layout.width()]);
                }
            }
            data
        };
        let (k, v) = (fill(), fill());
        let host = HostCache { k: widen(&k), v: widen(&v) };
        let block_table = rig.holding(&layout.block_table)?;
        Ok((Self { k: rig.holding(&k)?, v: rig.holding(&v)?, block_table, layout }, host))
    }

    pub(super) fn paged_kv(&self) -> PagedKv {
        let Layout { n_kv_heads, page_size, max_pages, .. } = self.layout;
        PagedKv {
            k: self.k.addr(),
            v: self.v.addr(),
            block_table: self.block_table.addr(),
            max_pages: max_pages as u32,
            page_size: PageSize::try_from(page_size).expect("the cases have powers of two"),
            n_kv_heads: n_kv_heads as u32,
        }
    }
}

/// The same contents on the host.
pub(super) struct HostCache {
    pub(super) k: Vec<f64>,
    pub(super) v: Vec<f64>,
}

impl HostCache {
    /// Keys and values of the first `len` positions.
    pub(super) fn rows(
        &self,
        layout: &Layout,
        sequence: usize,
        kv_head: usize,
        len: usize,
    ) -> (Vec<&[f64]>, Vec<&[f64]>) {
        let row = |position| layout.row(sequence, kv_head, position);
        let keys = (0..len).map(|position| &self.k[row(position)..][..layout.width()]).collect();
        let values = (0..len).map(|position| &self.v[row(position)..][..layout.width()]).collect();
        (keys, values)
    }
}
