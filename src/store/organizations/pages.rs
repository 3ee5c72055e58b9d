//! Pages of `workos.organization_records`, and lookups by ID and external ID.

use crate::domain::decide::Stored;
use crate::domain::organization::Organization;
use crate::store::pages::{Page, PageOf, Range};
use crate::store::{Store, StoreError};

/// Selects organizations.
#[derive(Clone, Copy, Debug, Default)]
pub struct OrganizationFilter<'a> {
    /// Only organizations with one of these domains. Not case-sensitive.
    pub domains: Option<&'a [String]>,
    /// Only organizations whose name has, for each word of this text, a word that begins with it. Not case-sensitive.
    pub search: Option<&'a str>,
}

/// Maximum number of characters of a search that are used, as in the index.
const SEARCHED: usize = 500;

impl Store {
    /// Returns the organization with this ID, live or deleted.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn organization(&self, id: &str) -> Result<Stored<Organization>, StoreError> {
        let ids = [id.to_owned()];
        let rows = self.lookup(async |connection| super::rows_by_ids(connection, &ids).await).await?;
        Ok(rows.into_iter().next().map_or(Stored::Absent, super::Row::into_stored))
    }

    /// Returns the live organization with this external ID. If there are several, because an external ID was given to another
    /// organization, returns the one with the highest version.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn organization_by_external_id(&self, external_id: &str) -> Result<Option<Organization>, StoreError> {
        let id = self
            .lookup(async |connection| {
                sqlx::query_scalar!(
                    "-- organizations.by_external_id
                    select id
                    from workos.organization_records
                    where external_id = $1
                    order by
                        updated_at desc,
                        synced_observed_at desc,
                        synced_observation_id desc
                    limit 1",
                    external_id
                )
                .fetch_optional(connection)
                .await
            })
            .await?;
        let Some(id) = id else { return Ok(None) };
        // The external ID may have been moved to another organization since the first statement.
        let organization = self.organization(&id).await?.into_live();
        Ok(organization.filter(|organization| organization.external_id.as_deref() == Some(external_id)))
    }

    /// Returns a page of live organizations. Without a filter it reads one range of one index, for late pages too. With one, it
    /// finds all organizations that match first, then selects the page among them.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn organizations_page(
        &self,
        filter: &OrganizationFilter<'_>,
        of: &PageOf<'_>,
    ) -> Result<Page<Organization>, StoreError> {
        let range = of.range();
        let search = filter.search.map(prefixes);
        let ids = match (filter.domains, search) {
            (_, Some(search)) if search.is_empty() => Vec::new(),
            (None, None) => self.organization_ids(&range).await?,
            (Some(domains), search) => self.organization_ids_by_domain(domains, search.as_deref(), &range).await?,
            (None, Some(search)) => self.organization_ids_by_name(&search, &range).await?,
        };
        let page = of.page(ids, |id| id);
        let rows = self.lookup(async |connection| super::rows_by_ids(connection, &page.items).await).await?;
        let mut found: std::collections::BTreeMap<_, _> = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
        Ok(page.filter_map(|id| found.remove(&id)?.into_stored().into_live()))
    }

    async fn organization_ids(&self, of: &Range<'_>) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            if of.upward {
                sqlx::query_scalar!(
                    "-- organizations.page_up
                    select id
                    from workos.organization_records
                    where
                        id > $1
                        and name is not null
                        and not synced_deleted
                    order by id
                    limit $2",
                    of.from,
                    of.limit
                )
                .fetch_all(connection)
                .await
            } else {
                sqlx::query_scalar!(
                    "-- organizations.page_down
                    select id
                    from workos.organization_records
                    where
                        id < $1
                        and name is not null
                        and not synced_deleted
                    order by id desc
                    limit $2",
                    of.from,
                    of.limit
                )
                .fetch_all(connection)
                .await
            }
        })
        .await
    }

    /// Without `materialized`, PostgreSQL would read the whole table in ID order.
    async fn organization_ids_by_domain(
        &self,
        domains: &[String],
        search: Option<&str>,
        of: &Range<'_>,
    ) -> Result<Vec<String>, StoreError> {
        let domains: Vec<String> = domains.iter().map(|domain| domain.to_lowercase()).collect();
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- organizations.page_by_domain
                with matching as materialized (
                    select id
                    from workos.organization_records
                    where
                        jsonb_path_query_array(domains, '$[*].domain') ?| $1::text[]
                        and domains is not null
                        and case
                            when $2::text is null then true
                            else
                                array_to_tsvector(
                                    array_remove(
                                        regexp_split_to_array(lower(left(name, 500)), '[\x01-/:-@\[-`{-\x7f]+'), ''
                                    )
                                ) @@ lower($2)::tsquery
                        end
                )
                select id as "id!"
                from matching
                where case when $3 then id > $4 else id < $4 end
                order by
                    case when $3 then id end,
                    id desc
                limit $5"#,
                &domains,
                search,
                of.upward,
                of.from,
                of.limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    async fn organization_ids_by_name(&self, search: &str, of: &Range<'_>) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- organizations.page_by_name
                with matching as materialized (
                    select id
                    from workos.organization_records
                    where
                        array_to_tsvector(
                            array_remove(
                                regexp_split_to_array(lower(left(name, 500)), '[\x01-/:-@\[-`{-\x7f]+'), ''
                            )
                        ) @@ lower($1)::tsquery
                        and name is not null
                )
                select id as "id!"
                from matching
                where case when $2 then id > $3 else id < $3 end
                order by
                    case when $2 then id end,
                    id desc
                limit $4"#,
                search,
                of.upward,
                of.from,
                of.limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }
}

/// Returns the text search query for words that begin with the words of the text. Empty if the text has no word.
fn prefixes(text: &str) -> String {
    let text: String = text.chars().take(SEARCHED).collect();
    let words = text.split(|char: char| char.is_ascii() && !char.is_ascii_alphanumeric());
    let words = words.filter(|word| !word.is_empty()).map(|word| format!("'{word}':*"));
    words.collect::<Vec<_>>().join(" & ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_contains_only_words() {
        assert_eq!(prefixes("Quill & S\u{f8}n A/S"), "'Quill':* & 'S\u{f8}n':* & 'A':* & 'S':*");
        assert_eq!(prefixes("' | 'a'):\\"), "'a':*");
        assert_eq!(prefixes(" -!* "), "");
    }
}
