//! Rows of the tables of objects as JSON, to compare them with WorkOS's objects.

use std::collections::BTreeMap;

use authkit_sync::domain::object::Kind;
use authkit_sync::domain::timestamp::Timestamp;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

/// The columns of a row that are not null.
pub(crate) type Columns = BTreeMap<String, Value>;

/// Each kind of object, and its table.
pub(crate) const TABLES: [(Kind, &str); 3] = [
    (Kind::User, "user_records"),
    (Kind::Organization, "organization_records"),
    (Kind::Membership, "organization_membership_records"),
];

/// The columns that a live object of WorkOS's JSON is stored in.
pub(crate) fn columns_of(object: &Value) -> Columns {
    let mut columns: Columns =
        object.as_object().unwrap().iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    columns.remove("object");
    if let Some(roles) = object["roles"].as_array() {
        let slugs: Vec<&Value> = roles.iter().map(|role| &role["slug"]).collect();
        columns.insert("roles".to_owned(), json!(slugs));
        columns.insert("role".to_owned(), object["role"]["slug"].clone());
    }
    columns.retain(|_, value| !value.is_null());
    columns
}

/// Reads the rows of a table: those with these IDs, or all. Times are written as WorkOS writes them.
pub(crate) async fn rows_of(
    pool: &PgPool,
    table: &str,
    ids: Option<&[String]>,
) -> sqlx::Result<BTreeMap<String, Columns>> {
    let sql = format!("select to_jsonb(stored) from workos.{table} as stored where $1::text[] is null or id = any($1)");
    let rows: Vec<Value> = sqlx::query_scalar(AssertSqlSafe(sql)).bind(ids).fetch_all(pool).await?;
    let columns = |row: Value| {
        let row: Columns = row
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| {
                let time = value.as_str().filter(|_| name.ends_with("_at")).and_then(Timestamp::parse);
                (name.clone(), time.map_or_else(|| value.clone(), |time| json!(time)))
            })
            .collect();
        (row["id"].as_str().unwrap().to_owned(), row)
    };
    Ok(rows.into_iter().map(columns).collect())
}
