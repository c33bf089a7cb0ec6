//! Libraries of the embedder's: who calls which function, and when they work.

use super::report::{Report, RunError};
use super::{Machine, Policy};
use crate::external::{Bound, Late, Library};
use crate::program::{ExternalFunction, Module};

/// Turns without progress after which libraries work in each turn.
const QUIET_TURNS: u64 = 16;

impl Machine {
    /// Provides functions to modules that are loaded from now on. Of two with one name the older one is called.
    pub fn provide(&mut self, library: Box<dyn Library>) {
        self.libraries.push(library);
    }

    /// Finds all functions that a kernel calls and its file leaves open.
    pub(super) fn bind(&self, module: &Module, kernel: usize) -> Result<Box<[Bound]>, RunError> {
        let externals = &module.kernels[kernel].program.externals;
        externals.iter().map(|external| self.bind_one(module, external)).collect()
    }

    fn bind_one(&self, module: &Module, external: &ExternalFunction) -> Result<Bound, RunError> {
        let places = self.libraries.iter().enumerate().flat_map(|(library, provided)| {
            let functions = provided.functions().iter().enumerate();
            functions.map(move |(function, found)| (Bound { library, function }, found))
        });
        let found = places.into_iter().find(|(_, found)| found.name == external.name);
        let why = match found {
            Some((bound, found)) if fits(found.parameters, found.result, external) => return Ok(bound),
            Some(_) => "is declared with other parameters or results than its library has",
            None => "is neither defined in the file nor by a library of the machine",
        };
        let (line, _) = module.line(external.extent);
        let (file, function) = (module.file.clone(), external.name.clone());
        Err(RunError::External { file, line, function, why })
    }

    pub(super) fn libraries_are_busy(&self) -> bool {
        self.libraries.iter().any(|library| library.is_busy())
    }

    /// Libraries work now and then, the adversary's as late as it can.
    pub(super) fn let_libraries_work(&mut self) -> Result<(), RunError> {
        if !self.libraries_are_busy() {
            return Ok(());
        }
        // Seldom, and then much of it; in powers of two.
        let (seldom, burst) = if self.options.policy == Policy::Adversarial { (6, 10) } else { (2, 7) };
        if self.stall.turns < QUIET_TURNS && self.random.below(1 << seldom) != 0 {
            return Ok(());
        }
        let burst = 1 << self.random.below(burst);
        (0..burst).try_for_each(|_| self.let_library_work().map(drop))
    }

    /// One piece of work; false if there was none.
    pub(super) fn let_library_work(&mut self) -> Result<bool, RunError> {
        let chance = self.random.next();
        let busy = self.libraries.iter_mut().find(|library| library.is_busy());
        let Some(library) = busy else { return Ok(false) };
        let done = library.work(&mut self.memory, chance);
        self.progress += 1;
        done.map(|()| true).map_err(|late| self.report_call(late))
    }

    /// The report of a call that went wrong behind its back.
    fn report_call(&self, Late { cause, caller, site }: Late) -> RunError {
        let (place, other) = self.places_of(&cause);
        let place = place.or_else(|| self.place_of_site(caller, site));
        match place {
            Some(place) => RunError::Fault(Box::new(Report {
                cause,
                place,
                other,
                seed: self.options.seed,
                policy: self.options.policy,
            })),
            None => RunError::Library(cause.to_string()),
        }
    }
}

fn fits(parameters: &[u32], result: Option<u32>, external: &ExternalFunction) -> bool {
    external.params == parameters && external.returns.as_slice() == result.as_slice()
}
