//! Pages of `workos.organization_membership_records`, with the copies of other objects that WorkOS's REST API sends.

use std::collections::{BTreeMap, BTreeSet};

use super::{Row, rows_by_ids};
use crate::domain::decide::Stored;
use crate::domain::membership::{ListedMembership, Membership};
use crate::domain::object::Object;
use crate::store::pages::{Page, PageOf, Range};
use crate::store::{Store, StoreError};

/// Selects the memberships of a user, of an organization, or of a user in an organization.
#[derive(Clone, Copy, Debug)]
pub struct MembershipFilter<'a> {
    /// The user or the organization of the memberships.
    pub of: MembershipsOf<'a>,
    /// The statuses, each once.
    pub statuses: &'a [String],
}

/// Whose memberships a list contains.
#[derive(Clone, Copy, Debug)]
pub enum MembershipsOf<'a> {
    /// All memberships of an organization.
    Organization(&'a str),
    /// The memberships of a user: all, or those in this organization.
    User(&'a str, Option<&'a str>),
}

impl Store {
    /// Returns the membership with this ID, in any status. `None` if it is unknown or has ended.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn listed_membership(&self, id: &str) -> Result<Option<ListedMembership>, StoreError> {
        Ok(self.listed_memberships(&[id.to_owned()]).await?.remove(id))
    }

    /// Returns a page of memberships that have not ended. For an organization it reads one range of one index for each status. For
    /// a user it finds all memberships first, then selects the page among them.
    ///
    /// # Errors
    /// [`StoreError`]
    pub async fn memberships_page(
        &self,
        filter: &MembershipFilter<'_>,
        of: &PageOf<'_>,
    ) -> Result<Page<ListedMembership>, StoreError> {
        let range = of.range();
        let ids = match filter.of {
            MembershipsOf::Organization(id) if range.upward => {
                self.ids_of_organization_up(id, filter.statuses, &range).await?
            }
            MembershipsOf::Organization(id) => self.ids_of_organization_down(id, filter.statuses, &range).await?,
            MembershipsOf::User(user_id, organization_id) => {
                self.ids_of_user(user_id, organization_id, filter.statuses, &range).await?
            }
        };
        let page = of.page(ids, |id| id);
        let mut found = self.listed_memberships(&page.items).await?;
        Ok(page.filter_map(|id| found.remove(&id)))
    }

    /// Returns these memberships with the copies of their users and organizations, without those that have ended. The copies are
    /// read in separate statements, because a join has no plan that is good for every size of the tables.
    async fn listed_memberships(&self, ids: &[String]) -> Result<BTreeMap<String, ListedMembership>, StoreError> {
        let rows = self.lookup(async |connection| rows_by_ids(connection, ids).await).await?;
        let rows: Vec<Membership> = rows.into_iter().filter_map(|row| Row::into_stored(row).into_live()).collect();
        let distinct = |id: fn(&Membership) -> &String| -> Vec<String> {
            rows.iter().map(id).collect::<BTreeSet<_>>().into_iter().cloned().collect()
        };
        let users = self.users(&distinct(|membership| &membership.of.user_id)).await?;
        let organizations = self.organizations(&distinct(|membership| &membership.of.organization_id)).await?;
        let listed = rows.into_iter().filter_map(|membership| {
            let user = match users.get(&membership.of.user_id) {
                Some(Stored::Tombstone { .. }) => return None,
                Some(Stored::Live { object, .. }) => Some((**object).clone()),
                Some(Stored::Absent) | None => None,
            };
            let organization_name = match organizations.get(&membership.of.organization_id) {
                Some(Stored::Tombstone { .. }) => return None,
                Some(Stored::Live { object, .. }) => match &**object {
                    Object::Organization(organization) => Some(organization.name.clone()),
                    _ => None,
                },
                Some(Stored::Absent) | None => None,
            };
            Some((membership.id.clone(), ListedMembership { membership, organization_name, user }))
        });
        Ok(listed.collect())
    }

    /// The query uses scalar subqueries, because PostgreSQL always executes them as lookups by key. It could execute a join as a
    /// scan. The order by status makes it use the index that contains the status.
    async fn ids_of_organization_up(
        &self,
        organization_id: &str,
        statuses: &[String],
        of: &Range<'_>,
    ) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- memberships.page_of_organization_up
                select page.id as "id!"
                from unnest($2::text[]) as wanted (status)
                cross join lateral (
                    select membership.id
                    from workos.organization_membership_records as membership
                    where
                        membership.organization_id = $1
                        and (membership.status, membership.id) > (wanted.status, $3)
                        and membership.status <= wanted.status
                        and not coalesce(
                            (
                                select member.synced_deleted
                                from workos.user_records as member
                                where member.id = membership.user_id
                            ),
                            false
                        )
                    order by
                        membership.status,
                        membership.id
                    limit $4
                ) as page
                where
                    not coalesce(
                        (
                            select organization.synced_deleted
                            from workos.organization_records as organization
                            where organization.id = $1
                        ),
                        false
                    )
                order by page.id
                limit $4"#,
                organization_id,
                statuses,
                of.from,
                of.limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    async fn ids_of_organization_down(
        &self,
        organization_id: &str,
        statuses: &[String],
        of: &Range<'_>,
    ) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- memberships.page_of_organization_down
                select page.id as "id!"
                from unnest($2::text[]) as wanted (status)
                cross join lateral (
                    select membership.id
                    from workos.organization_membership_records as membership
                    where
                        membership.organization_id = $1
                        and (membership.status, membership.id) < (wanted.status, $3)
                        and membership.status >= wanted.status
                        and not coalesce(
                            (
                                select member.synced_deleted
                                from workos.user_records as member
                                where member.id = membership.user_id
                            ),
                            false
                        )
                    order by
                        membership.status desc,
                        membership.id desc
                    limit $4
                ) as page
                where
                    not coalesce(
                        (
                            select organization.synced_deleted
                            from workos.organization_records as organization
                            where organization.id = $1
                        ),
                        false
                    )
                order by page.id desc
                limit $4"#,
                organization_id,
                statuses,
                of.from,
                of.limit
            )
            .fetch_all(connection)
            .await
        })
        .await
    }

    async fn ids_of_user(
        &self,
        user_id: &str,
        organization_id: Option<&str>,
        statuses: &[String],
        of: &Range<'_>,
    ) -> Result<Vec<String>, StoreError> {
        self.lookup(async |connection| {
            sqlx::query_scalar!(
                r#"-- memberships.page_of_user
                with matching as materialized (
                    select membership.id
                    from workos.organization_membership_records as membership
                    where
                        membership.user_id = $1
                        and ($2::text is null or membership.organization_id = $2)
                        and membership.status = any($3)
                        and not coalesce(
                            (
                                select organization.synced_deleted
                                from workos.organization_records as organization
                                where organization.id = membership.organization_id
                            ),
                            false
                        )
                        and not coalesce(
                            (select member.synced_deleted from workos.user_records as member where member.id = $1), false
                        )
                )
                select id as "id!"
                from matching
                where case when $4 then id > $5 else id < $5 end
                order by
                    case when $4 then id end,
                    id desc
                limit $6"#,
                user_id,
                organization_id,
                statuses,
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
