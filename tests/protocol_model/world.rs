//! Ranks, their memory, and stores that arrive later, in any order that fences leave open.

use fewsync::comm::{Phase, Shape, sequence};

use crate::plan::{Act, Kind, Plan, plan};
use crate::seeds::Random;

/// A rule of the protocol that is broken on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nobody greets.
    NoGreetings,
    /// Odd numbers use the slots of even ones.
    OneSlot,
    /// Only 0 is skipped where the low half wraps.
    OneNumberSkipped,
    /// Between passes.
    NoFence,
    /// Greetings lie where the parity of the call's first number says.
    GreetingsByNumber,
    /// A phase alone has several passes, like a whole sum.
    PhasesOfSeveralPasses,
    /// A message stays where it was read.
    NotCleared,
}

/// Most ranks, and threads that move data.
const RANKS: usize = 6;
const THREADS: usize = 2;
/// Places of one format and parity, and all of a region.
const PLACES: usize = 40;
const GREETINGS: usize = 2 * RANKS;
const REGION: usize = GREETINGS + 4 * PLACES;

#[derive(Debug, Clone, Copy)]
struct Call {
    kind: Kind,
    plan: Plan,
    passes: u8,
    /// Messages carry their number, which the reader compares.
    has_flags: bool,
    /// Places from one slot to the next.
    stride: usize,
}

/// A store under way.
#[derive(Debug, Clone, Copy)]
struct Store {
    rank: u8,
    place: u16,
    /// 0 empties the place.
    value: u64,
    /// What an emptying store has read.
    read: u64,
    by: u8,
    by_rank: u8,
    /// Fences before it by its thread, and calls by its rank: the end of a kernel is a fence of all its threads.
    fences: u8,
    call: u8,
}

/// A thread that moves data, or (the last one of its rank) the clerk.
#[derive(Debug, Clone, Copy)]
struct Thread {
    rank: u8,
    index: u8,
    call: u8,
    pass: u8,
    at: u8,
    fences: u8,
    /// Of its pass.
    number: u64,
}

#[derive(Debug, Clone, Copy)]
struct Rank {
    call: u8,
    /// Threads that are still in it.
    busy: u8,
    number: u64,
    stopped: bool,
}

/// One schedule of the protocol.
pub(crate) struct World {
    fault: Fault,
    shape: Shape,
    workers: u8,
    calls: Vec<Call>,
    memory: Vec<[u64; REGION]>,
    ranks: Vec<Rank>,
    threads: Vec<Thread>,
    under_way: Vec<Store>,
    /// The rank that stops, and after how many steps of it.
    stops: Option<(u8, u32)>,
}

impl World {
    pub(crate) fn new(random: &mut Random, fault: Fault) -> Self {
        let shape = loop {
            let shape = Shape { nodes: 1 + random.below(4), gpus_per_node: 1 + random.below(4) };
            if (2..=RANKS).contains(&shape.world()) {
                break shape;
            }
        };
        let workers = 1 + random.below(THREADS) as u8;
        let mut calls = Vec::new();
        for _ in 0..2 + random.below(4) {
            push_call(random, shape, workers, fault, &mut calls);
        }
        let first = random.pick(&[2, (1 << 32) - 1, (1 << 32) - 2, (1 << 32) - 3]);
        let world = shape.world() as u8;
        let rank = Rank { call: 0, busy: workers + 1, number: first, stopped: false };
        let thread = |rank, index| Thread { rank, index, call: 0, pass: 0, at: 0, fences: 0, number: first };
        Self {
            fault,
            shape,
            workers,
            calls,
            memory: vec![[0; REGION]; world as usize],
            ranks: vec![rank; world as usize],
            threads: (0..world)
                .flat_map(|rank| (0..=workers).map(move |index| thread(rank, index)))
                .collect(),
            under_way: Vec::new(),
            stops: random.once_in(16).then(|| (random.below(world as usize) as u8, random.below(60) as u32)),
        }
    }

    /// Lets threads and stores move in a random order until nothing is left to do.
    pub(crate) fn run(&mut self, random: &mut Random) -> Result<(), String> {
        let deliveries = random.pick(&[1, 4, 7]);
        let fast_rank = random.below(2 * self.ranks.len());
        let mut in_vain = 0;
        while in_vain < 64 || self.can_move()? {
            let moved = if !self.under_way.is_empty() && random.below(8) < deliveries {
                let store = random.below(self.under_way.len());
                self.deliver(store)?
            } else {
                let mut thread = random.below(self.threads.len());
                if random.once_in(2) && fast_rank < self.ranks.len() {
                    let of_rank = usize::from(self.workers) + 1;
                    thread = fast_rank * of_rank + thread % of_rank;
                }
                self.step(thread)?
            };
            in_vain = if moved { 0 } else { in_vain + 1 };
        }
        self.judge()
    }

    /// Whether anything moves, after long having tried in vain; moves it.
    fn can_move(&mut self) -> Result<bool, String> {
        for store in 0..self.under_way.len() {
            if self.deliver(store)? {
                return Ok(true);
            }
        }
        for thread in 0..self.threads.len() {
            if self.step(thread)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Who is behind a rank that stopped waits, and nobody is ahead of it by more than the call that it is in.
    fn judge(&self) -> Result<(), String> {
        let all = self.calls.len() as u8;
        if let Some(stopped) = self.ranks.iter().find(|rank| rank.stopped) {
            let ahead = self.ranks.iter().any(|rank| rank.call > stopped.call + 1);
            return if ahead { Err("a rank has left a stopped one behind".into()) } else { Ok(()) };
        }
        if let Some(rank) = self.ranks.iter().position(|rank| rank.call < all) {
            return Err(format!("rank {rank} waits for ever in call {}", self.ranks[rank].call));
        }
        let left = self.memory.iter().flatten().filter(|&&value| value != 0).count();
        if left > 0 { Err(format!("{left} messages were taken by nobody")) } else { Ok(()) }
    }

    /// A store arrives, if all that fences put before it have.
    fn deliver(&mut self, at: usize) -> Result<bool, String> {
        let store = self.under_way[at];
        let is_before = |other: &Store| {
            other.by_rank == store.by_rank
                && (other.call < store.call || other.by == store.by && other.fences < store.fences)
        };
        if self.under_way.iter().any(is_before) {
            return Ok(false);
        }
        let (rank, place) = (store.rank as usize, store.place as usize);
        let found = self.memory[rank][place];
        if found != store.read {
            let what = if store.value == 0 { "is emptied before it was taken" } else { "is overwritten" };
            return Err(format!("{}: message {found:#x} on rank {rank} {what}", self.what()));
        }
        self.memory[rank][place] = store.value;
        self.under_way.swap_remove(at);
        Ok(true)
    }

    fn send(&mut self, by: usize, to: u8, place: usize, value: u64, read: u64) {
        let Thread { rank: by_rank, fences, call, .. } = self.threads[by];
        let (place, by) = (place as u16, by as u8);
        self.under_way.push(Store { rank: to, place, value, read, by, by_rank, fences, call });
    }

    /// Takes a message from the thread's own region, if it is there.
    fn take(&mut self, by: usize, place: usize, expected: u64, has_flags: bool) -> Result<bool, String> {
        let rank = self.threads[by].rank;
        let value = self.memory[rank as usize][place];
        let is_emptied = |it: &Store| it.rank == rank && it.place as usize == place && it.value == 0;
        let is_other = has_flags && value >> 32 != expected >> 32;
        if value == 0 || is_other || self.under_way.iter().any(is_emptied) {
            return Ok(false);
        }
        if value != expected {
            return Err(format!("{}: rank {rank} takes {value:#x} for {expected:#x}", self.what()));
        }
        if self.fault != Fault::NotCleared {
            self.send(by, rank, place, 0, value);
        }
        Ok(true)
    }

    /// One thread's next step, if it can make one.
    fn step(&mut self, by: usize) -> Result<bool, String> {
        let Thread { rank, index, call, .. } = self.threads[by];
        let own = &mut self.ranks[rank as usize];
        if own.stopped || call != own.call || usize::from(call) == self.calls.len() {
            return Ok(false);
        }
        if let Some((stops, steps)) = &mut self.stops
            && *stops == rank
        {
            own.stopped = *steps == 0;
            *steps = steps.saturating_sub(1);
            if own.stopped {
                return Ok(false);
            }
        }
        if index == self.workers { self.step_of_clerk(by) } else { self.step_of_worker(by) }
    }

    fn step_of_worker(&mut self, by: usize) -> Result<bool, String> {
        let thread = self.threads[by];
        let call = self.calls[thread.call as usize];
        let acts = &call.plan[thread.rank as usize];
        if usize::from(thread.at) == acts.len() {
            let this = &mut self.threads[by];
            (this.pass, this.at) = (thread.pass + 1, 0);
            if this.pass == call.passes {
                self.leave(by);
                return Ok(true);
            }
            this.number = next(self.fault, this.number);
            this.fences += u8::from(self.fault != Fault::NoFence);
            return Ok(true);
        }
        let (act, parity) = (acts[thread.at as usize], thread.number & 1);
        let area =
            2 * usize::from(call.has_flags) + if self.fault == Fault::OneSlot { 0 } else { parity as usize };
        let place = |slot: u8| {
            GREETINGS + area * PLACES + usize::from(slot) * call.stride + usize::from(thread.index)
        };
        let moved = match act {
            Act::Send { to, slot } => {
                let value = message(&thread, thread.rank, to, slot);
                self.send(by, to, place(slot), value, 0);
                true
            }
            Act::Receive { from, slot } => {
                let expected = message(&thread, from, thread.rank, slot);
                self.take(by, place(slot), expected, call.has_flags)?
            }
        };
        self.threads[by].at += u8::from(moved);
        Ok(moved)
    }

    /// Sends greetings, then awaits those of the others.
    fn step_of_clerk(&mut self, by: usize) -> Result<bool, String> {
        let thread = self.threads[by];
        let (world, at) = (self.ranks.len() as u8, thread.at);
        let turn = match self.fault {
            Fault::GreetingsByNumber => thread.number & 1,
            _ => u64::from(thread.call & 1),
        };
        let place = |from: u8| turn as usize * RANKS + usize::from(from);
        let moved = match at {
            at if at == 2 * world || self.fault == Fault::NoGreetings => {
                self.leave(by);
                return Ok(true);
            }
            at if at % world == thread.rank => true,
            at if at < world => {
                self.send(by, at, place(thread.rank), message(&thread, thread.rank, at, 0), 0);
                true
            }
            at => {
                let expected = message(&thread, at - world, thread.rank, 0);
                self.take(by, place(at - world), expected, true)?
            }
        };
        self.threads[by].at += u8::from(moved);
        Ok(moved)
    }

    /// A thread has ended its call; the last one opens the next.
    fn leave(&mut self, by: usize) {
        let this = &mut self.threads[by];
        (this.call, this.pass, this.at) = (this.call + 1, 0, 0);
        let rank = &mut self.ranks[this.rank as usize];
        rank.busy -= 1;
        if rank.busy > 0 {
            return;
        }
        for _ in 0..self.calls[rank.call as usize].passes {
            rank.number = next(self.fault, rank.number);
        }
        (rank.call, rank.busy) = (rank.call + 1, self.workers + 1);
        let (of, number) = (this.rank, rank.number);
        self.threads.iter_mut().filter(|thread| thread.rank == of).for_each(|thread| thread.number = number);
    }

    fn what(&self) -> String {
        let calls: Vec<_> = self.calls.iter().map(|it| (it.kind, it.passes, it.has_flags)).collect();
        format!("{}, {} threads, calls {calls:?}", self.shape, self.workers)
    }
}

/// A message says all that its reader expects of it; its upper half is the flag.
fn message(thread: &Thread, from: u8, to: u8, slot: u8) -> u64 {
    let parts = [thread.call, thread.pass, thread.index, from, to, slot];
    let what = parts.into_iter().fold(1, |word, part| word << 5 | u64::from(part));
    thread.number << 32 | (what & u64::from(u32::MAX))
}

fn next(fault: Fault, number: u64) -> u64 {
    match fault {
        Fault::OneNumberSkipped if sequence::flag(number + 1) == 0 => number + 2,
        Fault::OneNumberSkipped => number + 1,
        _ => sequence::next(number),
    }
}

fn push_call(random: &mut Random, shape: Shape, workers: u8, fault: Fault, calls: &mut Vec<Call>) {
    let phase = random.pick(&[Phase::Reduce, Phase::Put, Phase::Broadcast]);
    let kind = match random.below(5) {
        0 if shape.nodes == 1 => Kind::OneShot,
        0 | 1 => Kind::Whole,
        2 => Kind::Gather,
        3 => Kind::Nothing,
        _ => Kind::Phase(phase),
    };
    let has_passes = match kind {
        Kind::OneShot | Kind::Whole => true,
        Kind::Phase(_) => fault == Fault::PhasesOfSeveralPasses,
        Kind::Gather | Kind::Nothing => false,
    };
    let passes = if has_passes { 1 + random.below(4) as u8 } else { 1 };
    let stride = usize::from(workers) + random.below(2);
    calls.push(Call { kind, plan: plan(shape, kind), passes, has_flags: random.once_in(2), stride });
}
