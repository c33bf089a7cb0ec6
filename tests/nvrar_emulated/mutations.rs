//! Faults planted in the shipped PTX: each must be noticed within the schedules of one run of continuous integration.

use fewsync::kernels::Ptx;

use crate::scenario::Scenario;
use crate::schedules::{SCHEDULES, attempt, keep_loaded, shipped};
use crate::seeds::search;

/// A change of the text.
pub(crate) struct Mutation {
    pub(crate) what: &'static str,
    /// What becomes of a line, given those before it; none stays as it is.
    pub(crate) edit: fn(&[&str], &str) -> Option<String>,
    /// Whether a schedule could show it.
    pub(crate) concerns: fn(&Scenario) -> bool,
}

/// What the kernels that put have in common with the others.
pub(crate) const WORDS_STAY: Mutation = Mutation {
    what: "words stay where they were read",
    edit: |_, line| {
        let [a, b, c, d] = <[_; 4]>::try_from(stored(line, "v4.b32")?.1).ok()?;
        (a == b && b == c && c == d).then(String::new)
    },
    concerns: |_| true,
};
pub(crate) const ONE_WORD: Mutation =
    Mutation { what: "one word of four is looked at", edit: look_at_one_word, concerns: |_| true };

const MUTATIONS: [Mutation; 9] = [
    Mutation {
        what: "no fence between passes",
        edit: |_, line| (line == "fence.acq_rel.sys;").then(String::new),
        concerns: Scenario::has_passes,
    },
    Mutation {
        what: "a cell stored and loaded in two halves",
        edit: |_, line| halve_store(line).or_else(|| halve_load(line)),
        concerns: |_| true,
    },
    WORDS_STAY,
    Mutation {
        what: "cells and greetings stay where they were read",
        edit: |_, line| {
            let [a, b] = <[_; 2]>::try_from(stored(line, "v2.b64")?.1).ok()?;
            (a == b).then(String::new)
        },
        concerns: |_| true,
    },
    Mutation {
        what: "the number is not advanced",
        edit: |_, line| line.starts_with("st.relaxed.gpu.global.b64").then(String::new),
        concerns: |it| it.calls.len() > 1,
    },
    ONE_WORD,
    Mutation {
        what: "one slot instead of two",
        edit: |_, line| {
            let (operands, last) = line.strip_prefix("and.b64")?.rsplit_once(", ")?;
            (last == "1;").then(|| format!("and.b64 {operands}, 0;"))
        },
        concerns: |_| true,
    },
    Mutation {
        what: "a scope that leaves peers out",
        edit: |_, line| line.contains("relaxed.sys.global.v").then(|| line.replacen(".sys.", ".gpu.", 1)),
        concerns: |_| true,
    },
    Mutation {
        what: "no wait for the kernel ahead",
        edit: |_, line| (line == "griddepcontrol.wait;").then(String::new),
        concerns: |it| it.options.dependent_launch && it.calls.len() > 1,
    },
];

/// The place and the elements of a vector store that peers may see.
fn stored<'a>(line: &'a str, ty: &str) -> Option<(&'a str, Vec<&'a str>)> {
    let rest = line.strip_prefix("st.relaxed.sys.global.")?.strip_prefix(ty)?;
    let (place, elements) = rest.trim().strip_suffix("};")?.split_once(", {")?;
    Some((place, elements.split(", ").collect()))
}

const HALVES: &str = ".reg .b32 %half<4>;";

fn halve_store(line: &str) -> Option<String> {
    let (place, elements) = stored(line, "v2.b64")?;
    let [a, b] = elements[..] else { return None };
    Some(format!(
        "{{ {HALVES} mov.b64 {{%half0, %half1}}, {a}; mov.b64 {{%half2, %half3}}, {b}; \
         st.relaxed.sys.global.v4.b32 {place}, {{%half0, %half1, %half2, %half3}}; }}"
    ))
}

fn halve_load(line: &str) -> Option<String> {
    let rest = line.strip_prefix("ld.relaxed.sys.global.v2.b64 {")?;
    let (elements, place) = rest.strip_suffix(';')?.split_once("}, ")?;
    let (a, b) = elements.split_once(", ")?;
    Some(format!(
        "{{ {HALVES} ld.relaxed.sys.global.v4.b32 {{%half0, %half1, %half2, %half3}}, {place}; \
         mov.b64 {a}, {{%half0, %half1}}; mov.b64 {b}, {{%half2, %half3}}; }}"
    ))
}

/// The largest of the four words is compared with the empty one; now it is the first of them.
fn look_at_one_word(before: &[&str], line: &str) -> Option<String> {
    let (head, _) = line.strip_prefix("setp.eq.b32")?.strip_suffix(", -1;")?.split_once(", ")?;
    let loaded =
        before.iter().rev().take(4).find_map(|it| it.strip_prefix("ld.relaxed.sys.global.v4.b32 {"))?;
    let first = loaded.split(", ").next()?;
    Some(format!("setp.eq.b32 {head}, {first}, -1;"))
}

impl Mutation {
    /// The committed file with this fault in some of its kernels, and in how many places.
    pub(crate) fn of(&self, ptx: &Ptx, kernels: fn(&str) -> bool) -> (&'static Ptx, usize) {
        let lines: Vec<&str> = ptx.text.lines().map(str::trim).collect();
        let (mut text, mut places, mut is_meant) = (String::with_capacity(ptx.text.len()), 0, false);
        for (i, line) in lines.iter().enumerate() {
            if let Some(entry) = line.strip_prefix(".visible .entry ") {
                is_meant = kernels(entry.trim_end_matches('('));
            }
            let edited = if is_meant { (self.edit)(&lines[i.saturating_sub(8)..i], line) } else { None };
            places += usize::from(edited.is_some());
            text.push_str(&edited.unwrap_or_else(|| (*line).to_owned()));
            text.push('\n');
        }
        let mutant = Ptx { arch: ptx.arch, text: text.leak(), entries: ptx.entries };
        (Box::leak(Box::new(mutant)), places)
    }
}

/// Each mutation of these kernels of a file has to show within the scenarios of so many seeds; there are none where it
/// cannot.
pub(crate) fn assert_caught(
    mutations: &[Mutation],
    ptx: &Ptx,
    kernels: fn(&str) -> bool,
    schedules: u64,
    scenario: impl Fn(u64, &Mutation) -> Option<Scenario> + Sync,
) {
    let mut missed = Vec::new();
    for mutation in mutations {
        let (mutant, places) = mutation.of(ptx, kernels);
        assert!(places > 0, "the PTX has no place for the fault '{}'", mutation.what);
        let _loaded = keep_loaded(&[mutant]);
        let (caught, tried) = search(0, schedules, |seed| {
            let scenario = scenario(seed, mutation)?;
            let reason = attempt(&scenario, mutant).err()?;
            Some((scenario, reason))
        });
        match caught {
            Some((scenario, reason)) => {
                let reason: String = reason.lines().next().unwrap_or_default().chars().take(180).collect();
                println!("{} ({places} places): caught by seed {}: {reason}", mutation.what, scenario.seed);
            }
            None => missed.push(format!("{} ({places} places, {tried} schedules)", mutation.what)),
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

fn plant(mutations: &[Mutation], kernels: fn(&str) -> bool, concerns: fn(&Scenario) -> bool) {
    let scenario = |seed, mutation: &Mutation| {
        let scenario = Scenario::new(seed);
        ((mutation.concerns)(&scenario) && concerns(&scenario)).then_some(scenario)
    };
    assert_caught(mutations, shipped("sm_90a"), kernels, SCHEDULES, scenario);
}

#[test]
fn mutations_are_caught() {
    plant(&MUTATIONS, |_| true, |_| true);
}

/// The same in the kernels that sum rows in two shots alone. They have no passes, and no kernel is ahead that writes what
/// they read: rows to be normalised are always fresh.
#[test]
fn mutations_of_shared_rows_are_caught() {
    let are_shared = |entry: &str| entry.contains("_twoshot_") && entry.ends_with("_norm");
    plant(&MUTATIONS[1..MUTATIONS.len() - 1], are_shared, Scenario::has_shared_rows);
}
