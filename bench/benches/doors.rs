//! What every request pays at a door, and every entry on the wire: grammar, access, encoding.

mod world;

use std::hint::black_box;

use atoll_api::access::{Caller, Credential, SandboxFacts, Target, authorize};
use atoll_api::ids::{OrganizationId, UserId};
use atoll_api::preview_host::PreviewHost;
use atoll_api::sandbox::Phase;
use atoll_api::tokens::TokenHash;
use atoll_api::wire;
use atoll_consensus::state::region::RegionCommand;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use world::{NOW_MS, create, placement, sandbox_id};

const DOMAIN: &str = "preview.localhost";

fn preview_host(c: &mut Criterion) {
    let mut group = c.benchmark_group("PreviewHost::parse");
    let hosts = [
        ("sandbox", format!("3000-{}.{DOMAIN}:9100", sandbox_id(1))),
        ("signed", format!("8080-0123456789abcdef.{DOMAIN}")),
        ("not a preview", "localhost:9100".to_owned()),
    ];
    for (name, host) in &hosts {
        group.bench_function(*name, |bencher| bencher.iter(|| PreviewHost::parse(black_box(host), DOMAIN)));
    }
    group.finish();
}

fn access(c: &mut Criterion) {
    let mut group = c.benchmark_group("authorize");
    let organization_id = OrganizationId(uuid::Uuid::from_u128(1));
    let sandbox = SandboxFacts {
        sandbox_id: sandbox_id(1),
        organization_id,
        public: false,
        preview_token_hash: TokenHash::of("token"),
        phase: Phase::Running,
        placement: placement(1),
        signing_key_version: 0,
    };
    let caller = Caller { organization_id, user_id: UserId(uuid::Uuid::nil()), key_name: "key".into() };
    let credentials = [
        ("API key", Credential::Caller(caller)),
        ("preview token", Credential::PreviewToken(TokenHash::of("token"))),
        ("nothing", Credential::Nothing),
    ];
    for (name, credential) in &credentials {
        group.bench_function(*name, |bencher| {
            bencher.iter(|| authorize(black_box(credential), &sandbox, Target::Port(3000), NOW_MS));
        });
    }
    group.finish();
}

fn encoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("wire");
    let command = create(1);
    let bytes = wire::encode(&command).expect("a command can be encoded");
    group.throughput(Throughput::Bytes(bytes.len() as u64));
    group
        .bench_function("encode CreateSandbox", |bencher| bencher.iter(|| wire::encode(black_box(&command))));
    group.bench_function("decode CreateSandbox", |bencher| {
        bencher.iter(|| wire::decode::<RegionCommand>(black_box(&bytes)));
    });
    group.finish();
}

criterion_group!(benches, preview_host, access, encoding);
criterion_main!(benches);
