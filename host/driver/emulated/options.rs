//! How an emulated machine is made and scheduled, and how people say so.

use std::fmt;
use std::str::FromStr;

use ptx_emulator::MAX_DEVICES;

/// The variable that [`EmulatorOptions::from_env`] reads.
pub const EMULATE_VARIABLE: &str = "FEWSYNC_EMULATE";

/// In which order warps, blocks and devices take turns.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Schedule {
    /// One after the other: the fastest.
    #[default]
    RoundRobin,
    /// Whatever the seed says.
    Random,
    /// One warp as far as it goes before any other moves.
    Adversarial,
}

impl Schedule {
    /// Every schedule.
    pub const ALL: [Self; 3] = [Self::RoundRobin, Self::Random, Self::Adversarial];

    fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Adversarial => "adversarial",
        }
    }
}

/// An emulated machine: how many devices, how suspicious, in which order.
///
/// As text, items separated by commas: `seed=7,schedule=adversarial,race,weak,devices=2,sms=132,memory=8`.
///
/// ```
/// use fewsync::driver::{EmulatorOptions, Schedule};
///
/// let options: EmulatorOptions = "schedule=random,seed=7,race".parse()?;
/// assert_eq!((options.schedule, options.seed, options.race), (Schedule::Random, 7, true));
/// assert_eq!(options.to_string().parse(), Ok(options));
/// # Ok::<(), fewsync::driver::InvalidEmulatorOption>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulatorOptions {
    /// `devices=N`: devices of the machine, all peers of each other; at most [`MAX_DEVICES`].
    pub devices: u32,
    /// `seed=N`: of the schedule and of weak memory; it reproduces a failure.
    pub seed: u64,
    /// `schedule=round-robin|random|adversarial`.
    pub schedule: Schedule,
    /// `race`: two conflicting accesses that nothing orders are a fault.
    pub race: bool,
    /// `weak`: stores become visible late and in another order, where PTX allows it.
    pub weak: bool,
    /// `sms=N`: multiprocessors of each device. Engines choose grids by it. The default holds one cluster of the largest
    /// size whose blocks take a multiprocessor each.
    pub multiprocessors: u32,
    /// `memory=GIB`: memory of each device in GiB. Only what is written takes the host's.
    pub memory_gib: u64,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        Self {
            devices: 1,
            seed: 0,
            schedule: Schedule::default(),
            race: false,
            weak: false,
            multiprocessors: 8,
            memory_gib: 16,
        }
    }
}

/// A part of [`EmulatorOptions`] as text that says nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{item}' is no option of the emulator: give seed=N, schedule=round-robin|random|adversarial, race, weak, \
     devices=N (64 at most), sms=N or memory=GIB, separated by commas"
)]
pub struct InvalidEmulatorOption {
    item: String,
}

impl EmulatorOptions {
    /// What `FEWSYNC_EMULATE` says; without it the default.
    ///
    /// # Errors
    /// An item that is none.
    pub fn from_env() -> Result<Self, InvalidEmulatorOption> {
        let Some(text) = std::env::var_os(EMULATE_VARIABLE) else { return Ok(Self::default()) };
        text.to_string_lossy().parse()
    }

    fn set(&mut self, key: &str, value: Option<&str>) -> Option<()> {
        let at_least_one = |value: &str| value.parse().ok().filter(|&number: &u32| number > 0);
        match (key, value) {
            ("devices", Some(value)) => {
                self.devices = at_least_one(value).filter(|&number| number <= MAX_DEVICES)?;
            }
            ("seed", Some(value)) => self.seed = value.parse().ok()?,
            ("schedule", Some(value)) => {
                self.schedule = Schedule::ALL.into_iter().find(|schedule| schedule.name() == value)?;
            }
            ("race", None) => self.race = true,
            ("weak", None) => self.weak = true,
            ("sms", Some(value)) => self.multiprocessors = at_least_one(value)?,
            ("memory", Some(value)) => self.memory_gib = at_least_one(value)?.into(),
            _ => return None,
        }
        Some(())
    }
}

impl FromStr for EmulatorOptions {
    type Err = InvalidEmulatorOption;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut options = Self::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').map_or((item, None), |(key, value)| (key, Some(value)));
            options.set(key, value).ok_or_else(|| InvalidEmulatorOption { item: item.to_owned() })?;
        }
        Ok(options)
    }
}

/// As [`FromStr`] reads it, whole: what reproduces a run.
impl fmt::Display for EmulatorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let &Self { devices, seed, schedule, race, weak, multiprocessors, memory_gib } = self;
        write!(f, "seed={seed},schedule={}", schedule.name())?;
        f.write_str(if race { ",race" } else { "" })?;
        f.write_str(if weak { ",weak" } else { "" })?;
        write!(f, ",devices={devices},sms={multiprocessors},memory={memory_gib}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_survive_their_text() {
        let every = EmulatorOptions {
            devices: 3,
            seed: u64::MAX,
            schedule: Schedule::Adversarial,
            race: true,
            weak: true,
            multiprocessors: 132,
            memory_gib: 2,
        };
        for options in [every, EmulatorOptions::default()] {
            assert_eq!(options.to_string().parse(), Ok(options));
        }
        assert_eq!("".parse(), Ok(EmulatorOptions::default()));
    }

    #[test]
    fn what_says_nothing_is_named() {
        for item in
            ["seeds=1", "seed", "seed=x", "race=1", "devices=0", "devices=65", "schedule=fair", "sms=-1"]
        {
            let error = format!("weak, {item}").parse::<EmulatorOptions>().unwrap_err();
            assert!(error.to_string().starts_with(&format!("'{item}' is no option")), "{error}");
        }
    }
}
