//! Data races: which accesses to each granule (8 aligned bytes) are not yet ordered before everything later.
//!
//! Like FastTrack and ThreadSanitizer, an access is remembered by its epoch until a later one makes it
//! superfluous; lanes of a warp that do the same share one record.

use super::causality::Causality;
use super::granule::overlap_completely;
use super::tracking::Histories;
use super::view::View;
use super::{AccessKind, BlockId, Scope, Site, Thread};

/// Granules in a page.
const PAGE: usize = 512;
/// Records per granule. With more (a word that hundreds of warps have read), an old one is forgotten: a race with
/// it is missed, none is invented.
const MAX_RECORDS: usize = 64;

/// Accesses by lanes of one warp: the same bytes of a granule, by the same instruction, at the same clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    block: BlockId,
    /// Index of the thread of lane 0.
    first: u32,
    lanes: u32,
    clock: u32,
    pub(super) site: Site,
    /// The bytes, one bit each; none in an unused record.
    mask: u8,
    pub(super) kind: AccessKind,
    /// Of a strong access.
    pub(super) scope: Option<Scope>,
}

impl Record {
    const UNUSED: Self = Self {
        block: BlockId(0),
        first: 0,
        lanes: 0,
        clock: 0,
        site: Site::NONE,
        mask: 0,
        kind: AccessKind::Load,
        scope: None,
    };

    /// An access at the present clock of its thread.
    pub(super) fn new(by: &View<'_>, site: Site, mask: u8, kind: AccessKind, scope: Option<Scope>) -> Self {
        let Thread { block, index } = by.thread;
        let (first, lanes) = (index & !31, 1 << (index & 31));
        Self { block, first, lanes, clock: by.clock, site, mask, kind, scope }
    }

    /// The thread of the lowest lane.
    pub(super) fn thread(&self) -> Thread {
        Thread { block: self.block, index: self.first + self.lanes.trailing_zeros() }
    }

    /// Whether its accesses are of the asynchronous proxy.
    fn is_of_async_proxy(&self) -> bool {
        self.thread().is_of_async_proxy()
    }

    pub(super) fn mask(&self) -> u8 {
        self.mask
    }

    fn writes(&self) -> bool {
        self.kind != AccessKind::Load
    }

    /// Whether only the lanes differ.
    fn joins(&self, new: &Self) -> bool {
        Self { lanes: new.lanes, ..*self } == *new
    }

    /// Whether `new` becomes one with it: the same by lanes of one warp, of which only plain stores of different values
    /// conflict.
    fn takes(&self, new: &Self, context: &Context<'_>) -> bool {
        let alone = self.lanes == new.lanes || !new.writes() || new.scope.is_some() || context.unchanged;
        alone && self.joins(new)
    }

    /// Whether the two do not race although nothing orders them: both strong, each speaks to the other's thread,
    /// and they overlap completely.
    fn morally_strong(&self, other: &Self, causality: &Causality) -> bool {
        let speaks = |from: &Self, to: &Self| {
            from.scope.is_some_and(|scope| causality.includes(scope, from.block, to.block))
        };
        let whole = overlap_completely((self.mask, self.thread()), (other.mask, other.thread()));
        whole && speaks(self, other) && speaks(other, self)
    }

    /// Whether everything that races with `self`, which precedes `new`, races with `new` as well.
    fn is_covered_by(&self, new: &Self) -> bool {
        let as_strong = match (self.scope, new.scope) {
            (_, None) => true,
            (Some(old), Some(new_scope)) => old >= new_scope && self.mask == new.mask,
            (None, Some(_)) => false,
        };
        self.mask & !new.mask == 0 && (new.writes() || !self.writes()) && as_strong
    }
}

/// An earlier access that a new one must not follow like this.
#[derive(Debug, Clone, Copy)]
pub(super) struct Conflict {
    pub(super) first: Record,
    /// The two are ordered, but for the proxy fence that is missing between them.
    pub(super) lacks_proxy_fence: bool,
}

/// The records of one granule.
#[derive(Debug, Clone)]
struct Cell {
    first: Record,
    rest: Vec<Record>,
}

impl Cell {
    const fn new(first: Record) -> Self {
        Self { first, rest: Vec::new() }
    }

    /// Checks `new` against all records and adds it; records that it covers are dropped.
    fn access(&mut self, new: &Record, by: &View<'_>, context: &Context<'_>) -> Result<(), Conflict> {
        // Nothing new: others that have come since would have raced with the same access, unless they observed a store.
        let again = self.first.lanes & new.lanes != 0 && self.first.takes(new, context);
        if again && (!new.writes() || self.rest.is_empty()) {
            return Ok(());
        }
        let mut merged = false;
        if self.first.mask != 0 {
            match judge(&self.first, new, by, context)? {
                Outcome::Keep => {}
                Outcome::Merge => {
                    self.first.lanes |= new.lanes;
                    merged = true;
                }
                Outcome::Drop => self.first = Record::UNUSED,
            }
        }
        let mut at = 0;
        while let Some(record) = self.rest.get_mut(at) {
            match judge(record, new, by, context)? {
                Outcome::Keep => at += 1,
                Outcome::Merge => {
                    record.lanes |= new.lanes;
                    merged = true;
                    at += 1;
                }
                Outcome::Drop => {
                    self.rest.swap_remove(at);
                }
            }
        }
        if !merged {
            self.push(new);
        }
        Ok(())
    }

    fn push(&mut self, new: &Record) {
        if self.first.mask == 0 {
            self.first = *new;
            return;
        }
        if self.rest.len() < MAX_RECORDS {
            self.rest.push(*new);
        } else {
            let victim = new.first.wrapping_mul(0x9e37_79b9).wrapping_add(new.block.0) as usize % MAX_RECORDS;
            self.rest[victim] = *new;
        }
    }
}

/// What becomes of a record when a new access has been judged against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Keep,
    Merge,
    Drop,
}

/// What else decides about races: scopes, and who observed a strong store.
#[derive(Clone, Copy)]
pub(super) struct Context<'a> {
    pub(super) causality: &'a Causality,
    pub(super) histories: &'a Histories,
    pub(super) granule: usize,
    /// Whether proxies are told apart: in shared memory.
    pub(super) has_proxies: bool,
    /// A store that leaves the bytes as they are: lanes of a warp may all write the same value at once.
    pub(super) unchanged: bool,
}

impl Context<'_> {
    /// Whether the strong store `old` has been read by somebody that the thread knows of.
    fn is_observed(&self, old: &Record, who: Thread, by: &View<'_>) -> bool {
        let strong_store = old.writes() && old.scope.is_some();
        let history = if strong_store { self.histories.get(&self.granule) } else { None };
        history.is_some_and(|history| history.is_observed(who, old.clock, old.mask, by))
    }

    /// The lane of a generic store whose bytes the asynchronous proxy accesses next, without a proxy fence between them.
    /// Signals to mbarriers, which are atomic, need none.
    fn first_unfenced(&self, old: &Record, new: &Record, by: &View<'_>) -> Option<Record> {
        let crosses = self.has_proxies
            && new.is_of_async_proxy()
            && new.kind != AccessKind::Atomic
            && old.writes()
            && !old.is_of_async_proxy();
        let lane_of = |lane: u32| Record { lanes: 1 << lane, ..*old };
        let mut lanes = (0..32).filter(|lane| crosses && old.lanes & 1 << lane != 0).map(lane_of);
        lanes.find(|lane| !self.causality.is_proxy_fenced(lane.thread(), lane.clock, by))
    }
}

fn judge(old: &Record, new: &Record, by: &View<'_>, context: &Context<'_>) -> Result<Outcome, Conflict> {
    if old.mask & new.mask == 0 {
        return Ok(Outcome::Keep);
    }
    if old.takes(new, context) {
        return Ok(Outcome::Merge);
    }
    let first = Thread { block: old.block, index: old.first };
    if let Some(who) = by.first_unknown(first, old.lanes, old.clock)
        && !context.is_observed(old, who, by)
    {
        let conflict = old.writes() || new.writes();
        return if conflict && !old.morally_strong(new, context.causality) {
            let first = Record { lanes: 1 << (who.index - old.first), ..*old };
            Err(Conflict { first, lacks_proxy_fence: false })
        } else {
            Ok(Outcome::Keep)
        };
    }
    if let Some(first) = context.first_unfenced(old, new, by) {
        return Err(Conflict { first, lacks_proxy_fence: true });
    }
    Ok(if old.is_covered_by(new) { Outcome::Drop } else { Outcome::Keep })
}

#[derive(Debug, Default)]
enum Page {
    #[default]
    Untouched,
    /// All granules have this record alone: a copy or a fill.
    Uniform(Record),
    Cells(Box<[Cell; PAGE]>),
}

impl Page {
    fn cells(&mut self) -> &mut [Cell; PAGE] {
        let all = match self {
            Self::Untouched => Record::UNUSED,
            Self::Uniform(record) => *record,
            Self::Cells(cells) => return cells,
        };
        *self = Self::Cells(Box::new([const { Cell::new(Record::UNUSED) }; PAGE]));
        let Self::Cells(cells) = self else { unreachable!("just made") };
        cells.fill(Cell::new(all));
        cells
    }
}

/// The records of one region.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    pages: Vec<Page>,
}

impl Shadow {
    /// Checks `new` against earlier accesses to the granule, and remembers it. An error is the earlier access that
    /// it races with.
    pub(super) fn access(
        &mut self,
        new: &Record,
        by: &View<'_>,
        context: &Context<'_>,
    ) -> Result<(), Conflict> {
        let page = self.page(context.granule / PAGE);
        page.cells()[context.granule % PAGE].access(new, by, context)
    }

    /// The same for a whole page by one plain access, in one step if nobody else has touched it one by one.
    pub(super) fn access_page(
        &mut self,
        page: usize,
        new: &Record,
        by: &View<'_>,
        context: &mut Context<'_>,
    ) -> Result<(), Conflict> {
        let first = page * PAGE;
        match self.page(page) {
            page @ Page::Untouched => *page = Page::Uniform(*new),
            Page::Uniform(old) if judge(old, new, by, context)? == Outcome::Drop => *old = *new,
            page => {
                for (at, cell) in page.cells().iter_mut().enumerate() {
                    context.granule = first + at;
                    cell.access(new, by, context)?;
                }
            }
        }
        Ok(())
    }

    /// Granules in a page.
    pub(super) const PAGE: usize = PAGE;

    fn page(&mut self, page: usize) -> &mut Page {
        if self.pages.len() <= page {
            self.pages.resize_with(page + 1, Page::default);
        }
        &mut self.pages[page]
    }
}
