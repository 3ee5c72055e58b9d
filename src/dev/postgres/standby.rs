//! A standby of a private server, for tests of failovers.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use super::{PostgresError, PrivatePostgres, change_owner, scratch_directory};

impl PrivatePostgres {
    /// Copies this server, and starts the copy as its streaming standby, with temporary data and a socket of its own. It has the same
    /// settings. This server is restarted for the copy, which ends its connections: not every package of PostgreSQL contains
    /// `pg_basebackup`.
    ///
    /// # Errors
    /// [`PostgresError`]
    pub fn start_standby(&mut self) -> Result<Self, PostgresError> {
        let scratch = scratch_directory(true)?;
        change_owner(&scratch, self.owner)?;
        let mut standby = Self {
            programs: self.programs.clone(),
            owner: self.owner,
            data: scratch.join("data"),
            scratch,
            is_temporary: true,
            settings: self.settings.clone(),
            port: None,
            server: None,
        };
        self.pause()?;
        let copied = copy(&self.data, &standby.data);
        self.resume()?;
        copied?;
        standby.follow(self)?;
        standby.resume()?;
        Ok(standby)
    }

    /// Lets this server stream from the primary after its start.
    fn follow(&self, primary: &Self) -> Result<(), PostgresError> {
        let signal = self.data.join("standby.signal");
        fs::write(&signal, "").map_err(|error| PostgresError::io("write", &signal, &error))?;
        change_owner(&signal, self.owner)?;
        let settings = self.data.join("postgresql.auto.conf");
        let (host, port) = (primary.scratch.display(), primary.socket_port());
        File::options()
            .append(true)
            .open(&settings)
            .and_then(|mut file| writeln!(file, "primary_conninfo = 'host={host} port={port} user=postgres'"))
            .map_err(|error| PostgresError::io("write", &settings, &error))
    }
}

/// Copies the data of a stopped server, with its owner.
fn copy(from: &Path, to: &Path) -> Result<(), PostgresError> {
    let output = Command::new("cp").arg("-a").args([from, to]).stdin(Stdio::null()).output();
    let output = output.map_err(|error| PostgresError::new(format!("cannot run cp: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(PostgresError::new(format!("cannot copy {} to {}: {}", from.display(), to.display(), why.trim())))
}
