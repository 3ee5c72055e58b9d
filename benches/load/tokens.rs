//! Access tokens, signed before the first round.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use authkit_sync::dev::workos::SimulatedWorkos;

use serde_json::json;

use super::database::ORGANIZATIONS;
use super::requests::FIRST;

/// Lifetime of the tokens, in seconds.
const LIFE: i64 = 6 * 3_600;

/// Writes a file with this many tokens of users that were loaded with SQL, and returns its path. `in_organization`: each is a token
/// for the organization of the user.
pub(crate) fn write(
    workos: &SimulatedWorkos,
    folder: &Path,
    name: &str,
    count: usize,
    users: u64,
    in_organization: bool,
) -> PathBuf {
    let path = folder.join(format!("{name}.tokens"));
    let mut file = BufWriter::new(File::create(&path).unwrap());
    for number in 0..count as u64 {
        // Consecutive tokens belong to users that are not adjacent in the table.
        let user = format!("user_seed_{}", FIRST + (number * 7_919) % users.max(1));
        let mut claims = json!({"sub": user, "sid": format!("session_{name}_{number}")});
        if in_organization {
            let organization = (FIRST + (number * 7_919) % users.max(1)) % ORGANIZATIONS;
            claims["org_id"] = json!(format!("org_seed_{organization}"));
            claims["role"] = json!("member");
            claims["permissions"] = json!(["notes:read", "notes:write"]);
        }
        let token = workos.token_with(claims, LIFE).unwrap();
        writeln!(file, "{token}").unwrap();
    }
    file.flush().unwrap();
    path
}
