//! The file that keeps the state of the simulated WorkOS between runs.

use std::io;
use std::path::Path;

use super::Options;
use super::fault::SimulationError;
use super::state::State;

/// Reads the state from the file of `options`, or creates a new state if there is none.
pub(super) fn load(options: &Options) -> Result<State, SimulationError> {
    let Some(file) = options.state.as_ref().filter(|file| file.exists()) else {
        return Ok(State::new(options.seed, options.clock.now()));
    };
    let unreadable = |_| {
        SimulationError::new(format!(
            "cannot read the state file {}; remove it to start with empty data",
            file.display()
        ))
    };
    let bytes = std::fs::read(file).map_err(unreadable)?;
    let mut state: State = serde_json::from_slice(&bytes).map_err(io::Error::from).map_err(unreadable)?;
    state.complete(options.clock.now());
    Ok(state)
}

/// Writes a new file and renames it, so that a kill leaves either the old or the new file.
pub(super) fn save(file: &Path, state: &State) -> io::Result<()> {
    let bytes = serde_json::to_vec(state)?;
    let next = file.with_extension("next");
    std::fs::write(&next, bytes)?;
    std::fs::rename(next, file)
}
