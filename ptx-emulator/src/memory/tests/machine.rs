//! Small programs of a few threads, run in a random order.

use std::collections::BTreeSet;

use crate::memory::{
    Access, BlockSpec, Clock, DeviceId, Fault, Memory, MemoryOptions, Order, Owner, Result, SHARED_WINDOW,
    Scope, Site, Thread, Width,
};

/// An operation. Locations are numbered; a load leaves its value in the thread's next register.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    St(Order, Scope, Loc, u64),
    Ld(Order, Scope, Loc),
    Add(Order, Scope, Loc, u64),
    Fence(Order, Scope),
    /// A load that is repeated until it reads the value; no register.
    Wait(Order, Scope, Loc, u64),
    /// All threads arrive and leave.
    Barrier,
}

/// A location: the granule, the first byte, the size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Loc(pub(super) u64, pub(super) u64, pub(super) Width);

pub(super) const X: Loc = Loc(0, 0, Width::B4);
pub(super) const Y: Loc = Loc(1, 0, Width::B4);

/// Where the threads of a program run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In one block, on its shared memory.
    Shared,
    /// In one block, on global memory.
    Block,
    /// Each in a block of its own, on one device.
    Device,
    /// Each on a device of its own.
    Peers,
}

/// Deterministic chance.
#[derive(Debug)]
pub(super) struct Dice(pub(super) u64);

impl Dice {
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % n as u64) as usize
    }
}

/// A memory with `n` threads at a place, and zeros at the locations.
pub(super) struct Machine {
    pub(super) memory: Memory,
    pub(super) threads: Vec<Thread>,
    base: u64,
}

impl Machine {
    pub(super) fn new(options: MemoryOptions, place: Place, n: usize) -> Self {
        let mut memory = Memory::new(options);
        for (from, to) in (0..n as u32).flat_map(|a| (0..n as u32).map(move |b| (a, b))) {
            memory.enable_peer(DeviceId(from), DeviceId(to));
        }
        let mut base = memory.allocate(Owner::Device(DeviceId(0)), 64, "locations").unwrap();
        memory.fill(Thread::HOST, base, 64, &[0]).unwrap();
        let mut start = Clock::default();
        memory.release(Thread::HOST, &mut start);
        let mut threads = Vec::new();
        let together = matches!(place, Place::Shared | Place::Block);
        let mut grid = memory.begin_grid(DeviceId(0), &start);
        for at in 0..n as u32 {
            if place == Place::Peers && at > 0 {
                grid = memory.begin_grid(DeviceId(at), &start);
            }
            let n_threads = if together { n as u32 } else { 1 };
            let spec = BlockSpec { grid, index: u64::from(at), n_threads, shared_bytes: 64 };
            let block = memory.begin_block(&spec);
            threads.extend((0..n_threads).map(|index| Thread::new(block, index)));
            if together {
                break;
            }
        }
        if place == Place::Shared {
            base = SHARED_WINDOW;
            memory.write(threads[0], base, &[0; 64]).unwrap();
            memory.barrier(threads[0].block, 0..n as u32);
        }
        Self { memory, threads, base }
    }

    pub(super) fn address(&self, loc: Loc) -> u64 {
        self.base + loc.0 * 8 + loc.1
    }

    /// Does one operation; its site is its place in the program, plus 100 times the thread. Says whether it is done.
    pub(super) fn step(
        &mut self,
        thread: usize,
        site: usize,
        op: Op,
        registers: &mut Vec<u64>,
    ) -> Result<bool> {
        let (who, site) = (self.threads[thread], Site((100 * thread + site) as u32));
        let access = |order, scope| Access { thread: who, site, order, scope };
        match op {
            Op::St(order, scope, loc, value) => {
                self.memory.store(&access(order, scope), self.address(loc), loc.2, value)?;
            }
            Op::Ld(order, scope, loc) => {
                registers.push(self.memory.load(&access(order, scope), self.address(loc), loc.2)?);
            }
            Op::Add(order, scope, loc, more) => {
                let address = self.address(loc);
                registers.push(self.memory.rmw(&access(order, scope), address, loc.2, |it| Some(it + more))?);
            }
            Op::Fence(order, scope) => self.memory.fence(who, order, scope),
            Op::Wait(order, scope, loc, value) => {
                let address = self.address(loc);
                return Ok(self.memory.load(&access(order, scope), address, loc.2)? == value);
            }
            Op::Barrier => unreachable!("the runner does barriers"),
        }
        Ok(true)
    }

    /// What memory holds once every store is visible.
    pub(super) fn last(&mut self, loc: Loc) -> u64 {
        let mut bytes = [0; 8];
        let thread = if self.base == SHARED_WINDOW { self.threads[0] } else { Thread::HOST };
        let address = self.address(loc);
        let out = &mut bytes[..loc.2.bytes() as usize];
        self.memory.read(thread, address, out).unwrap();
        u64::from_le_bytes(bytes)
    }
}

/// Runs the threads once, in an order that the seed gives: their registers, then X and Y in the end.
pub(super) fn run(options: MemoryOptions, place: Place, program: &[&[Op]], seed: u64) -> Result<Vec<u64>> {
    let mut machine = Machine::new(options, place, program.len());
    let mut dice = Dice(seed);
    let mut at = vec![0; program.len()];
    let mut registers = vec![Vec::new(); program.len()];
    loop {
        let waits = |thread: usize| matches!(program[thread].get(at[thread]), Some(Op::Barrier));
        let ready: Vec<_> = (0..at.len()).filter(|&it| at[it] < program[it].len() && !waits(it)).collect();
        if ready.is_empty() {
            if !(0..at.len()).any(waits) {
                break;
            }
            machine.memory.barrier(machine.threads[0].block, 0..at.len() as u32);
            at.iter_mut().for_each(|at| *at += 1);
            continue;
        }
        let thread = ready[dice.below(ready.len())];
        let op = program[thread][at[thread]];
        at[thread] += usize::from(machine.step(thread, at[thread], op, &mut registers[thread])?);
        if dice.below(4) == 0 {
            machine.memory.tick();
        }
    }
    let mut outcome = registers.concat();
    if !options.race {
        outcome.extend([machine.last(X), machine.last(Y)]);
    }
    Ok(outcome)
}

const SEEDS: u64 = 400;

/// All outcomes of a program on weak memory, over many seeds.
pub(super) fn outcomes(place: Place, program: &[&[Op]]) -> BTreeSet<Vec<u64>> {
    (0..SEEDS)
        .map(|seed| {
            let options = MemoryOptions { weak: Some(seed), ..MemoryOptions::default() };
            run(options, place, program, seed).unwrap()
        })
        .collect()
}

/// The first race of a program that any of many schedules reveals, on strong and on weak memory.
pub(super) fn race(place: Place, program: &[&[Op]]) -> Option<Box<Fault>> {
    (0..SEEDS).find_map(|seed| {
        let weak = (seed % 2 == 0).then_some(seed);
        run(MemoryOptions { race: true, weak, ..MemoryOptions::default() }, place, program, seed).err()
    })
}
