//! What ranks that are processes must have in common, compared before anything is computed: the sums of ranks that
//! differ in model, prompt or options have the right shape, and are garbage.
//!
//! Each process brings a digest of each item, and the first that differs is named. There are two meetings: the command
//! line as soon as all processes are there, and what its files hold before weights are loaded.

use anyhow::bail;
use clap::{ArgMatches, Command};

use super::world::World;
use crate::comm::bootstrap::Bootstrap;
use crate::model::{DIGEST_BYTES, Fingerprint};

/// Options, by their ids, that are not compared: what only rank 0 reads or writes, how long a rank waits, and what is
/// compared by what it names (`PLAN.json`, a tuning file and a model's folder may lie elsewhere on each host).
const OWN: [&str; 12] = [
    "json",
    "csv",
    "plot",
    "join",
    "out",
    "start_limit",
    "sync_limit",
    "model",
    "spd",
    "prompt_file",
    "text",
    "tuning",
];

/// Something that all processes must have in common.
#[derive(Debug)]
pub(super) struct Item {
    name: String,
    digest: [u8; DIGEST_BYTES],
}

impl Item {
    /// `name` completes "rank 1 has another …".
    pub(super) fn new(name: &str, fields: impl IntoIterator<Item: AsRef<[u8]>>) -> Self {
        let mut fingerprint = Fingerprint::of(name);
        fields.into_iter().for_each(|field| fingerprint.field(field.as_ref()));
        Self { name: name.to_owned(), digest: fingerprint.digest() }
    }

    /// Tokens of a prompt or a text: they follow from the tokenizer, too.
    pub(super) fn tokens<'a>(name: &str, sequences: impl IntoIterator<Item = &'a [u32]>) -> Self {
        Self::new(name, sequences.into_iter().map(bytemuck::cast_slice::<u32, u8>))
    }
}

/// The command, and each of its options that all processes must be given alike.
pub(super) fn of_command_line(mut command: &Command, mut matches: &ArgMatches) -> Vec<Item> {
    let (mut names, mut options) = (Vec::new(), Vec::new());
    while let Some((name, inner)) = matches.subcommand() {
        let Some(subcommand) = command.find_subcommand(name) else { break };
        (command, matches) = (subcommand, inner);
        names.push(name);
        for option in command.get_arguments().filter(|option| !OWN.contains(&option.get_id().as_str())) {
            let values = matches.try_get_raw(option.get_id().as_str()).ok().flatten();
            let fields = values.into_iter().flatten().map(|value| value.as_encoded_bytes());
            let name =
                option.get_long().map_or_else(|| option.get_id().to_string(), |long| format!("--{long}"));
            options.push(Item::new(&name, fields));
        }
    }
    options.insert(0, Item::new("command", names));
    options
}

impl World {
    /// Compares this process's items with the others'; threads of one process have them in common, so `items` is not
    /// called there.
    pub(super) fn agree(&self, items: impl FnOnce() -> anyhow::Result<Vec<Item>>) -> anyhow::Result<()> {
        let Self::Processes(mesh) = self else { return Ok(()) };
        compare(&**mesh, &items()?)
    }
}

/// Collective: compares this process's items with those of the others.
pub(super) fn compare(mesh: &dyn Bootstrap, items: &[Item]) -> anyhow::Result<()> {
    let mine: Vec<u8> = items.iter().flat_map(|item| item.digest).collect();
    let all = mesh.all_gather("compare what is to be done", &mine)?;
    match first_difference(items, &all) {
        None => Ok(()),
        Some((rank, name)) => bail!(
            "rank {rank} has another {name} than rank 0: start all ranks with the same command, and give them the same \
             files"
        ),
    }
}

/// The lowest rank whose digests differ from rank 0's, and the first item in which they do.
fn first_difference<'a>(items: &'a [Item], all: &[Vec<u8>]) -> Option<(usize, &'a str)> {
    let rank = all.iter().position(|digests| *digests != all[0])?;
    let [ours, theirs] = [&all[0], &all[rank]].map(|digests| digests.chunks(DIGEST_BYTES));
    let same = ours.zip(theirs).take_while(|(ours, theirs)| ours == theirs).count();
    // Those of other commands differ in the first already.
    Some((rank, items.get(same).map_or("command", |item| &item.name)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use clap::CommandFactory;

    use super::super::Cli;
    use super::*;

    fn items(line: &str) -> Vec<Item> {
        let mut command = Cli::command();
        let matches =
            command.try_get_matches_from_mut(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"));
        of_command_line(&command, &matches)
    }

    /// What differs between ranks that are given these lines.
    fn difference(lines: &[&str]) -> Option<(usize, String)> {
        let all: Vec<Vec<Item>> = lines.iter().map(|line| items(line)).collect();
        let digests = |items: &Vec<Item>| items.iter().flat_map(|item| item.digest).collect();
        let digests: Vec<Vec<u8>> = all.iter().map(digests).collect();
        let each: Vec<_> = all.iter().map(|items| first_difference(items, &digests)).collect();
        assert!(each.iter().all(|found| *found == each[0]), "{each:?}");
        each[0].map(|(rank, name)| (rank, name.to_owned()))
    }

    #[test]
    fn the_first_option_that_differs_is_named() {
        let line = "fewsync generate --prompt a --seed 3";
        assert_eq!(difference(&[line; 3]), None);
        for (other, name) in [
            ("fewsync generate --prompt b --seed 3", "--prompt"),
            ("fewsync generate --prompt a", "--seed"),
            ("fewsync generate --prompt a --seed 3 --chat", "--chat"),
            ("fewsync generate --prompt a --seed 3 --tp 2", "--tp"),
            ("fewsync generate --prompt a --seed 3 --no-direct", "--no-direct"),
            ("fewsync generate --prompt a --seed 3 --no-dependent-launch", "--no-dependent-launch"),
            ("fewsync demo --prompt a", "command"),
            ("fewsync bench decode", "command"),
        ] {
            assert_eq!(difference(&[line, line, other]), Some((2, name.to_owned())), "{other}");
            assert_eq!(difference(&[other, line, line]), Some((1, name.to_owned())), "{other}");
        }
        let lists = ["2,4", "2,8", "24"].map(|list| format!("fewsync bench decode --batch {list}"));
        assert_eq!(difference(&[&lists[0], &lists[1]]), Some((1, "--batch".to_owned())));
        assert_eq!(difference(&[&lists[0], &lists[2]]), Some((1, "--batch".to_owned())));
    }

    #[test]
    fn a_ranks_own_options_may_differ() {
        let one = "fewsync --json bench decode --csv a --sync-limit 3 --model m --spd p.json";
        assert_eq!(difference(&[one, "fewsync bench decode --plot b.svg --model n --spd q.json"]), None);
    }

    #[test]
    fn own_options_exist() {
        let mut command = Cli::command();
        command.build();
        let mut ids = HashSet::new();
        let mut left = vec![&command];
        while let Some(command) = left.pop() {
            left.extend(command.get_subcommands());
            ids.extend(command.get_arguments().map(|option| option.get_id().as_str()));
        }
        let unknown: Vec<_> = OWN.iter().filter(|id| !ids.contains(*id)).collect();
        assert!(unknown.is_empty(), "{unknown:?}");
    }

    #[test]
    fn items_differ_by_what_they_hold_and_how_it_is_cut() {
        let digest = |sequences: &[&[u32]]| Item::tokens("prompt", sequences.iter().copied()).digest;
        assert_eq!(digest(&[&[1, 2]]), digest(&[&[1, 2]]));
        assert_ne!(digest(&[&[1, 2]]), digest(&[&[1, 3]]));
        assert_ne!(digest(&[&[1, 2], &[3]]), digest(&[&[1], &[2, 3]]));
    }
}
