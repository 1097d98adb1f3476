// Looks a name up with what Node brings: "resolve" is its own c-ares, "lookup" the C library.
const dns = require('dns').promises;
const [way, kind, name] = process.argv.slice(2);
const says = { ENOTFOUND: way === 'lookup' ? 'NONE' : 'NXDOMAIN', ENODATA: 'NODATA' };
const families = { A: 4, AAAA: 6, BOTH: 0 };

async function resolve(kind) {
  const found = await dns.resolve(name, kind);
  return found.map((r) => (kind === 'SRV' ? `${r.priority} ${r.weight} ${r.port} ${r.name}` : r));
}

async function answers() {
  if (way === 'lookup') {
    return (await dns.lookup(name, { all: true, family: families[kind] })).map((a) => a.address);
  }
  if (kind !== 'BOTH') return resolve(kind);
  const both = await Promise.allSettled([resolve('A'), resolve('AAAA')]);
  const found = both.flatMap((one) => one.value ?? []);
  if (found.length === 0) throw both[0].reason;
  return found;
}

answers().then(
  (found) => found.forEach((line) => console.log(line)),
  (error) => console.log(says[error.code] ?? String(error)),
);
