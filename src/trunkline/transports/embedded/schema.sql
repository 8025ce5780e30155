-- One row per open node. `missed`: the last frame that expired before the node read it.
CREATE TABLE node (name TEXT PRIMARY KEY, watermark INTEGER NOT NULL, missed INTEGER NOT NULL) WITHOUT ROWID;

-- Frames up to `since` were published before the subscription. A node's inbox is its topic "@<node>".
CREATE TABLE subscription (topic TEXT, node TEXT, since INTEGER NOT NULL, PRIMARY KEY (topic, node)) WITHOUT ROWID;

-- The log. AUTOINCREMENT: an id is never used twice, also after everything was deleted.
CREATE TABLE frame (
    id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, sender TEXT NOT NULL,
    channel TEXT, capacity INTEGER, expires REAL NOT NULL, body BLOB NOT NULL
);

-- Posted frames that the owner has not reported as taken.
CREATE TABLE depth (node TEXT, channel TEXT, n INTEGER NOT NULL, PRIMARY KEY (node, channel)) WITHOUT ROWID;

-- `tries`: how often the frame was leased.
CREATE TABLE queue (
    id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, expires REAL NOT NULL, body BLOB NOT NULL, tries INTEGER NOT NULL
);
CREATE INDEX queue_order ON queue (queue, id);
CREATE INDEX queue_expiry ON queue (expires);
CREATE TABLE backlog (queue TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER queue_grew AFTER INSERT ON queue BEGIN
    INSERT INTO backlog VALUES (new.queue, 1) ON CONFLICT (queue) DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER queue_shrank AFTER DELETE ON queue BEGIN
    UPDATE backlog SET n = n - 1 WHERE queue = old.queue;
    DELETE FROM backlog WHERE queue = old.queue AND n <= 0;
    DELETE FROM large WHERE typeof(old.body) = 'text' AND place = old.body;
END;

-- Frames that go to the front of their queue when they are due, to live there for `ttl` seconds: delayed or leased ones.
CREATE TABLE put_off (
    token INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, due REAL NOT NULL, ttl REAL NOT NULL,
    body BLOB NOT NULL, tries INTEGER NOT NULL
);
CREATE INDEX put_off_order ON put_off (queue, due);

-- Nodes with an idle reader, the longest waiting first.
CREATE TABLE waiting (id INTEGER PRIMARY KEY, queue TEXT NOT NULL, node TEXT NOT NULL, UNIQUE (queue, node));
CREATE INDEX waiting_node ON waiting (node);

CREATE TABLE binding (
    topic TEXT, queue TEXT, capacity INTEGER NOT NULL, expires REAL NOT NULL, PRIMARY KEY (topic, queue)
) WITHOUT ROWID;

-- What topics remember. The newest row of a topic stays a day longer than its time.
CREATE TABLE history (
    topic TEXT, place INTEGER, expires REAL NOT NULL, mark TEXT NOT NULL, body BLOB NOT NULL, PRIMARY KEY (topic, place)
) WITHOUT ROWID;
CREATE INDEX history_expiry ON history (expires);

-- What nodes keep beside topics, under a lease for each node and topic that ends at `until`. `mark`: 1 if some of it was
-- reaped, 2 if some was lost, and the node has not kept it anew.
CREATE TABLE keeper (
    topic TEXT, node TEXT, until REAL NOT NULL, mark INTEGER NOT NULL, n INTEGER NOT NULL, PRIMARY KEY (topic, node)
) WITHOUT ROWID;
CREATE INDEX keeper_node ON keeper (node);
CREATE TABLE record (
    topic TEXT, node TEXT, key TEXT, tag TEXT NOT NULL, value BLOB NOT NULL, PRIMARY KEY (topic, node, key)
) WITHOUT ROWID;
CREATE TABLE tagged (topic TEXT, tag TEXT, n INTEGER NOT NULL, PRIMARY KEY (topic, tag)) WITHOUT ROWID;
CREATE TABLE tags (topic TEXT PRIMARY KEY, n INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER record_came AFTER INSERT ON record BEGIN
    UPDATE keeper SET n = n + 1 WHERE topic = new.topic AND node = new.node;
    INSERT INTO tagged VALUES (new.topic, new.tag, 1) ON CONFLICT (topic, tag) DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER record_went AFTER DELETE ON record BEGIN
    UPDATE keeper SET n = n - 1 WHERE topic = old.topic AND node = old.node;
    UPDATE tagged SET n = n - 1 WHERE topic = old.topic AND tag = old.tag;
    DELETE FROM tagged WHERE topic = old.topic AND tag = old.tag AND n <= 0;
END;
CREATE TRIGGER tag_came AFTER INSERT ON tagged WHEN new.tag <> '' BEGIN
    INSERT INTO tags VALUES (new.topic, 1) ON CONFLICT (topic) DO UPDATE SET n = n + 1;
END;
CREATE TRIGGER tag_went AFTER DELETE ON tagged WHEN old.tag <> '' BEGIN
    UPDATE tags SET n = n - 1 WHERE topic = old.topic;
    DELETE FROM tags WHERE topic = old.topic AND n <= 0;
END;

-- The places of the bodies in the file beside this one. In the tables above, `body` is then the place, as text.
-- They go with their rows; those of the log are deleted by whoever deletes the frames, where a trigger is too dear.
CREATE TABLE large (place TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TRIGGER large_put_off_went AFTER DELETE ON put_off WHEN typeof(old.body) = 'text' BEGIN
    DELETE FROM large WHERE place = old.body;
END;
CREATE TRIGGER large_history_went AFTER DELETE ON history WHEN typeof(old.body) = 'text' BEGIN
    DELETE FROM large WHERE place = old.body;
END;
CREATE TRIGGER large_went AFTER DELETE ON large BEGIN SELECT let_go(old.place); END;

-- `epoch`: a random number that tells this file from one that replaced it.
-- `front`: the last id that put a frame before all others of its queue.
CREATE TABLE meta (epoch INTEGER NOT NULL, checkpoints INTEGER NOT NULL, front INTEGER NOT NULL);
INSERT INTO meta VALUES (abs(random()) % 4294967296, 0, 0);
