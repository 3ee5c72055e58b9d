//! What `dev` prints: the addresses, what to copy, and commands to try.

use std::fmt;
use std::net::SocketAddr;

/// The addresses and secrets of a running `dev`, and a user.
#[derive(Debug)]
pub struct Screen {
    /// The service's URL.
    pub service: String,
    /// The operator's listener.
    pub ops: SocketAddr,
    /// The simulated WorkOS's URL.
    pub workos: String,
    /// The database over TCP.
    pub database: String,
    /// The environment's client ID.
    pub client_id: String,
    /// The environment's API key.
    pub api_key: String,
    /// The secret of the webhook endpoint.
    pub webhook_secret: String,
    /// A key for the routes of backends.
    pub service_key: String,
    /// A user.
    pub user: String,
    /// An access token of the user.
    pub token: String,
    /// A position of the change feed before this run.
    pub position: String,
    /// Whether the next start has the same data.
    pub is_kept: bool,
}

impl fmt::Display for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.addresses(f)?;
        self.reads(f)?;
        self.handler(f)?;
        self.faults(f)?;
        let kept = if self.is_kept { " The data is kept for the next start." } else { "" };
        write!(f, "Press Ctrl-C to stop.{kept}")
    }
}

impl Screen {
    fn addresses(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, ops, workos, database, client_id, api_key, webhook_secret, service_key, token, .. } = self;
        write!(
            f,
            "service      {service}\nstatus page  http://{ops}/\nmetrics      http://{ops}/metrics\n\
             WorkOS       {workos}/   (simulated; this URL lists how to control it)\n\
             PostgreSQL   psql '{database}'\n\n\
             # copy these for your application\n\
             export DATABASE_URL='{database}'\n\
             export WORKOS_CLIENT_ID={client_id}\n\
             export WORKOS_API_KEY={api_key}\n\
             export WORKOS_WEBHOOK_SECRET={webhook_secret}\n\
             export SERVICE_KEY={service_key}\n\
             export TOKEN={token}   # valid for five minutes\n\n"
        )
    }

    fn reads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { service, workos, api_key, service_key, user, position, .. } = self;
        write!(
            f,
            "# look up the user behind the token\n\
             curl -i -H \"Authorization: Bearer $TOKEN\" {service}/auth/user\n\n\
             # rename the user at WorkOS, then look it up again\n\
             curl -X PUT -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' \\\n     \
             -d '{{\"first_name\":\"Amazing Grace\"}}' {workos}/user_management/users/{user}\n\n\
             # read the changes of this run; the answer contains the next position\n\
             curl -H 'Authorization: Bearer {service_key}' '{service}/changes?after={position}'\n\n\
             # wait up to 20 seconds for the next change\n\
             curl -H 'Authorization: Bearer {service_key}' '{service}/changes?after=POSITION&wait=20'\n\n\
             # get a new token; then one that is valid for 10 seconds, with a role, permissions and claims of a template\n\
             curl -X POST {workos}/_simulate/users/{user}/token\n\
             curl -X POST -H 'Content-Type: application/json' \\\n     \
             -d '{{\"expires_in_s\":10,\"role\":\"admin\",\"permissions\":[\"orders:read\"],\"claims\":{{\"plan\":\"pro\"}}}}' {workos}/_simulate/users/{user}/token\n\n\
             # request a verdict on a sign-up (a rule denies gmail.com)\n\
             curl -X POST -H 'Content-Type: application/json' -d '{{\"email\":\"eve@gmail.com\"}}' {workos}/_simulate/actions\n\n"
        )
    }

    fn handler(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { database, .. } = self;
        write!(
            f,
            "# run your own SQL for every change of a user, exactly once\n\
             psql '{database}' <<'SQL'\n\
             create table if not exists greetings (email text, at timestamptz default now());\n\
             create or replace function public.greet(change jsonb) returns void language plpgsql as $$\n\
             begin\n    insert into greetings (email) values (change -> 'user' ->> 'email');\nend $$;\n\
             SQL\n\
             DATABASE_URL='{database}' authkit-sync handlers add public.greet --types user.created --from-start\n\
             psql '{database}' -c 'select * from greetings'\n\n"
        )
    }

    fn faults(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workos, .. } = self;
        let post = "curl -X POST -H 'Content-Type: application/json' -d";
        write!(
            f,
            "# deliver every webhook twice, half of them out of order, and lose some; then stop that\n\
             {post} '{{\"duplicate\":100,\"reorder\":50,\"drop\":10}}' {workos}/_simulate/deliveries\n\
             {post} '{{}}' {workos}/_simulate/deliveries\n\n\
             # make the API fail, too: catch-up still recovers the lost webhooks; then stop that\n\
             {post} '{{\"error\":30,\"rate_limit\":30}}' {workos}/_simulate/api\n\
             {post} '{{}}' {workos}/_simulate/api\n\n"
        )
    }
}
