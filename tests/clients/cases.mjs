// Runs named cases one after the other: `ok` or `FAIL` for each, then `N passed, N failed`. The words of the command line choose.
export async function runCases(cases) {
  const words = process.argv.slice(2);
  let passed = 0;
  let failed = 0;
  for (const [name, run] of Object.entries(cases)) {
    if (words.length > 0 && !words.some((word) => name.includes(word))) continue;
    const began = performance.now();
    try {
      await run();
      passed += 1;
      console.log(`ok   ${name} (${((performance.now() - began) / 1000).toFixed(1)} s)`);
    } catch (error) {
      failed += 1;
      console.log(`FAIL ${name}: ${error.stack}`);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 && passed > 0 ? 0 : 1);
}
