//! A standby of a private server, for tests of failovers.

use super::{PostgresError, PrivatePostgres, change_owner, scratch_directory};

impl PrivatePostgres {
    /// Copies this server, and starts the copy as its streaming standby, with temporary data and a socket of its own. It has the same
    /// settings.
    ///
    /// # Errors
    /// [`PostgresError`], also if this installation has no `pg_basebackup`.
    pub fn start_standby(&self) -> Result<Self, PostgresError> {
        let scratch = scratch_directory(true)?;
        change_owner(&scratch, self.owner)?;
        let standby = Self {
            programs: self.programs.clone(),
            owner: self.owner,
            data: scratch.join("data"),
            scratch,
            is_temporary: true,
            settings: self.settings.clone(),
            port: None,
            server: None,
        };
        standby.copy(self)?;
        let mut standby = standby;
        standby.resume()?;
        Ok(standby)
    }

    fn copy(&self, primary: &Self) -> Result<(), PostgresError> {
        let mut backup = self.command("pg_basebackup");
        backup.arg("--host").arg(&primary.scratch).args(["--port", &primary.socket_port().to_string()]);
        backup.args(["--username=postgres", "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]);
        let output = backup.arg("--pgdata").arg(&self.data).output();
        let output = output.map_err(|error| PostgresError::new(format!("cannot run pg_basebackup: {error}")))?;
        if output.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&output.stderr);
        Err(PostgresError::new(format!("pg_basebackup failed in {}:\n{}", self.data.display(), why.trim())))
    }
}
