//! Races: found where PTX has one, and only there.

use Order::{AcqRel, Acquire, Relaxed, Release, Sc, Weak};
use Scope::{Cta, Gpu, Sys};

use super::machine::{Loc, Machine, Op, Place, X, Y, race, run};
use crate::memory::{AccessKind, Fault, MemoryOptions, Order, RacingAccess, Scope, Site, Width};

const ALL: [Place; 4] = [Place::Shared, Place::Block, Place::Device, Place::Peers];

fn put(loc: Loc) -> Op {
    Op::St(Weak, Cta, loc, 1)
}

fn get(loc: Loc) -> Op {
    Op::Ld(Weak, Cta, loc)
}

#[test]
fn plain_conflicts_race_unless_a_barrier_is_between() {
    for place in ALL {
        assert!(race(place, &[&[put(X)], &[get(X)]]).is_some(), "{place:?}");
        assert!(race(place, &[&[put(X)], &[put(X)]]).is_some(), "{place:?}");
        assert!(race(place, &[&[get(X)], &[get(X)]]).is_none(), "{place:?}");
        assert!(race(place, &[&[put(X)], &[put(Y)]]).is_none(), "{place:?}");
    }
    for place in [Place::Shared, Place::Block] {
        assert_eq!(race(place, &[&[put(X), Op::Barrier], &[Op::Barrier, get(X)]]), None);
        // Missing before the buffer is used again.
        let once = [put(X), Op::Barrier, get(X), put(X)];
        assert!(race(place, &[&once, &[Op::Barrier, get(X)]]).is_some());
        let twice = [put(X), Op::Barrier, get(X), Op::Barrier, put(X)];
        assert_eq!(race(place, &[&twice, &[Op::Barrier, get(X), Op::Barrier]]), None);
    }
}

#[test]
fn neighbouring_bytes_do_not_race() {
    let byte = |at| Loc(0, at, Width::B1);
    let bytes = |at, width| Loc(0, at, width);
    assert_eq!(race(Place::Block, &[&[put(byte(3))], &[put(byte(4))], &[put(bytes(6, Width::B2))]]), None);
    assert!(race(Place::Block, &[&[put(byte(7))], &[put(bytes(6, Width::B2))]]).is_some());
    assert!(race(Place::Block, &[&[get(bytes(0, Width::B8))], &[put(byte(5))]]).is_some());
}

/// The usual flag, its parts open to mistakes.
fn pass(place: Place, fence: Option<Scope>, flag: Scope, reader_fence: Option<Scope>) -> Option<Box<Fault>> {
    let ops = |ops: [Option<Op>; 3]| ops.into_iter().flatten().collect::<Vec<_>>();
    let writer =
        ops([Some(put(X)), fence.map(|it| Op::Fence(AcqRel, it)), Some(Op::St(Relaxed, flag, Y, 1))]);
    let reader = ops([
        Some(Op::Wait(Relaxed, flag, Y, 1)),
        reader_fence.map(|it| Op::Fence(AcqRel, it)),
        Some(get(X)),
    ]);
    race(place, &[&writer, &reader])
}

#[test]
fn a_flag_needs_fences_that_reach() {
    for place in ALL {
        assert_eq!(pass(place, Some(Sys), Sys, Some(Sys)), None, "{place:?}");
        assert!(pass(place, None, Sys, Some(Sys)).is_some(), "{place:?}");
        assert!(pass(place, Some(Sys), Sys, None).is_some(), "{place:?}");
    }
    assert_eq!(pass(Place::Shared, Some(Cta), Cta, Some(Cta)), None);
    assert_eq!(pass(Place::Device, Some(Gpu), Gpu, Some(Gpu)), None);
    assert!(pass(Place::Device, Some(Cta), Gpu, Some(Gpu)).is_some());
    assert!(pass(Place::Device, Some(Gpu), Gpu, Some(Cta)).is_some());
    assert!(pass(Place::Peers, Some(Gpu), Sys, Some(Sys)).is_some());
    assert!(pass(Place::Peers, Some(Sys), Sys, Some(Gpu)).is_some());
    assert!(pass(Place::Peers, Some(Sys), Gpu, Some(Sys)).is_some());
}

#[test]
fn a_report_names_both_sides() {
    let fault = pass(Place::Peers, Some(Gpu), Sys, Some(Sys)).unwrap();
    let Fault::Race { first, second, allocation, offset } = &*fault else { panic!("{fault}") };
    assert_eq!((allocation.name.as_str(), *offset), ("locations", 0));
    let (writer, reader) = (RacingAccess { scope: None, ..*first }, RacingAccess { scope: None, ..*second });
    assert_eq!((writer, writer.kind, writer.site), (*first, AccessKind::Store, Site(0)));
    assert_eq!((reader, reader.kind, reader.site), (*second, AccessKind::Load, Site(102)));
    assert_ne!(first.thread.block, second.thread.block);
    assert!(fault.to_string().contains("the plain load by thread 0"), "{fault}");
}

#[test]
fn strong_accesses_race_where_their_scope_ends() {
    let both = |place, scope| race(place, &[&[Op::St(Relaxed, scope, X, 1)], &[Op::Ld(Relaxed, scope, X)]]);
    assert_eq!(both(Place::Shared, Cta), None);
    assert!(both(Place::Device, Cta).is_some());
    assert_eq!(both(Place::Device, Gpu), None);
    assert!(both(Place::Peers, Gpu).is_some());
    assert_eq!(both(Place::Peers, Sys), None);
    // One strong side is not enough, and neither is half a cell.
    assert!(race(Place::Device, &[&[put(X)], &[Op::Ld(Acquire, Sys, X)]]).is_some());
    let (cell, half) = (Loc(0, 0, Width::B8), Loc(0, 4, Width::B4));
    assert!(
        race(Place::Device, &[&[Op::St(Relaxed, Sys, cell, 1)], &[Op::Ld(Relaxed, Sys, half)]]).is_some()
    );
    assert_eq!(race(Place::Device, &[&[Op::St(Relaxed, Sys, cell, 1)], &[Op::Ld(Relaxed, Sys, cell)]]), None);
    let add = |scope| [Op::Add(Relaxed, scope, X, 1)];
    assert_eq!(race(Place::Device, &[&add(Gpu), &add(Gpu), &add(Gpu)]), None);
    assert!(race(Place::Device, &[&add(Gpu), &add(Cta)]).is_some());
}

#[test]
fn what_was_observed_is_ordered() {
    // The reader of a flag may reset it plainly; another thread may not.
    let raise = [Op::St(Relaxed, Sys, Y, 1)];
    let lower = [Op::Wait(Relaxed, Sys, Y, 1), put(Y)];
    assert_eq!(race(Place::Device, &[&raise, &lower]), None);
    assert!(race(Place::Device, &[&raise, &[put(Y)]]).is_some());
    // Through a chain of atomics, and from the observer on.
    let add = [Op::Add(Relaxed, Sys, Y, 1)];
    let last = [Op::Wait(Relaxed, Sys, Y, 2), put(Y), Op::St(Release, Sys, X, 1)];
    let told = [Op::Wait(Acquire, Sys, X, 1), put(Y)];
    assert_eq!(race(Place::Device, &[&add, &add, &last, &told]), None);
}

#[test]
fn a_plain_value_synchronises_nobody() {
    // Thread 1 has seen the flag, without an acquire, and overwrites it; what thread 2 reads comes from there.
    let told = Loc(2, 0, Width::B4);
    let program: [&[Op]; 3] = [
        &[put(X), Op::St(Release, Sys, Y, 1)],
        &[Op::Wait(Relaxed, Sys, Y, 1), Op::St(Weak, Cta, Y, 2), Op::St(Release, Sys, told, 1)],
        &[Op::Wait(Acquire, Sys, told, 1), Op::Ld(Acquire, Sys, Y), get(X)],
    ];
    for seed in 0..100 {
        let weak = (seed % 2 == 0).then_some(seed);
        let options = MemoryOptions { race: true, weak, ..MemoryOptions::default() };
        let fault = run(options, Place::Device, &program, seed).unwrap_err();
        assert!(
            matches!(*fault, Fault::Race { second: RacingAccess { site: Site(202), .. }, .. }),
            "{fault}"
        );
    }
}

#[test]
fn sc_fences_order_if_both_reach() {
    let ordered = |place, first, second| {
        let options = MemoryOptions { race: true, ..MemoryOptions::default() };
        let mut machine = Machine::new(options, place, 2);
        let program = [(0, put(X)), (0, Op::Fence(Sc, first)), (1, Op::Fence(Sc, second)), (1, get(X))];
        program.into_iter().all(|(thread, op)| machine.step(thread, 0, op, &mut Vec::new()).is_ok())
    };
    for scopes in [(Gpu, Gpu), (Gpu, Sys), (Sys, Gpu), (Sys, Sys), (Cta, Sys), (Sys, Cta)] {
        let (first, second) = scopes;
        assert!(ordered(Place::Block, first, second), "{scopes:?}");
        assert_eq!(ordered(Place::Device, first, second), first != Cta && second != Cta, "{scopes:?}");
        assert_eq!(ordered(Place::Peers, first, second), scopes == (Sys, Sys), "{scopes:?}");
    }
}

#[test]
fn the_last_block_may_sum_up() {
    let part = |at| Loc(at, 0, Width::B8);
    let counter = Loc(4, 0, Width::B4);
    let with = |order: Order| {
        let block = |at| [put(part(at)), Op::Add(order, Gpu, counter, 1)];
        let last = [Op::Wait(Acquire, Gpu, counter, 3), get(part(0)), get(part(1)), get(part(2))];
        race(Place::Device, &[&block(0), &block(1), &block(2), &last])
    };
    assert_eq!(with(AcqRel), None);
    assert_eq!(with(Release), None);
    assert!(with(Relaxed).is_some());
}
