-- A large fleet: devices with labels, hardware, versions and orders. ':devices' is how many.
SELECT setseed(0.5);  -- the same fleet every time

-- 12 blueprints, 5 versions of one model
INSERT INTO build (id, model, version, blueprint, blueprint_digest, recipe, waiver, state, progress,
    error, digest, lease_owner, attempt, created_at)
VALUES ('b', 'support-slm', '1.0.0', 'bp-1', '', '', '', 'SUCCEEDED', '{}', '', '', '', 1, now());
INSERT INTO artifact (id, build_id, model, version, blueprint, recipe, bytes, source_bytes, quality,
    measured, accepted, why, created_at)
VALUES ('a', 'b', 'support-slm', '1.0.0', 'bp-1', 'int8', 1, 1, '{}', '{}', true, '', now());
INSERT INTO bundle (digest, artifact_id, model, version, release, blueprint, recipe, size, envelope,
    created_at)
SELECT encode(sha256((v || ' ' || b)::bytea), 'hex'), 'a', 'support-slm', '1.' || v || '.0', v,
    'bp-' || b, 'int8', 25000000, decode(repeat('00', 1200), 'hex'), now()
FROM generate_series(1, 5) v, generate_series(1, 12) b;

-- one in ten offline, up to 400 days; 97 % run one version, an old tail and a wave that has begun
INSERT INTO device (id, state, blueprint, hardware, agent_version, secret_sha256,
    certificate_serial, enrolled_at, online, connection, last_seen_at, boot, state_seq, generation,
    digest, last_known_good, healthy)
SELECT 'edge-' || lpad(i::text, 7, '0'), CASE WHEN i % 5000 = 0 THEN 'quarantined' ELSE 'active' END,
    CASE WHEN i % 997 = 0 THEN NULL ELSE 'bp-' || b END,
    format('{"arch": "%s", "cpu": "Cortex-A76", "board": "board-%s", "cores": %s, "memory_mb": %s, '
        '"disk_free_mb": %s, "os": "Debian 12", "flags": ["fp16", "asimd", "dotprod"], '
        '"runtimes": ["onnxruntime 1.24.1"]}', CASE WHEN b % 3 = 0 THEN 'x86_64' ELSE 'aarch64' END,
        i % 400, 2 << (b % 3), 1024 << (b % 5), 1000 + i % 50000)::json,
    '0.3.0', encode(sha256(i::text::bytea), 'hex'), lpad(i::text, 40, '0'), now() - '90 d'::interval,
    r > 0.1, 1,
    CASE WHEN i % 2000 = 0 THEN NULL WHEN r > 0.1 THEN now() - r * '15 min'::interval
        ELSE now() - r * '400 d'::interval END,
    1, 5, 3, digest, digest, i % 300 <> 0
FROM (SELECT i, b, r, encode(sha256((CASE WHEN v > 0.02 THEN 4 WHEN v > 0.005 THEN 5 ELSE 1 END
        || ' ' || b)::bytea), 'hex') AS digest
    FROM (SELECT i, 1 + (i * 7919::bigint % 12)::int AS b, random() AS r, random() AS v
        FROM generate_series(1, :devices) i) drawn) fleet;

-- 1,000 sites
INSERT INTO device_label (device_id, key, value)
SELECT 'edge-' || lpad(i::text, 7, '0'), key,
    CASE key WHEN 'site' THEN 'site-' || lpad((i * 31::bigint % 1000)::text, 4, '0')
        ELSE 'ring-' || i % 10 END
FROM generate_series(1, :devices) i, unnest(ARRAY['site', 'ring']) key;

INSERT INTO desired (device_id, generation, action, digest, rollout, execution_id, envelope,
    issued_at)
SELECT id, 3, 'run', digest, 'r', 'e-' || id, decode(repeat('00', 900), 'hex'), now() FROM device;
