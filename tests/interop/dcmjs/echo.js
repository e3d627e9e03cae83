// One C-ECHO by dcmjs-dimse: node echo.js '{"port": …, "minVersion": …, "ca": …, "cert": …, "key": …}'.
// Prints what came of it; exit code 0 only when the answer was Success.
const fs = require('fs');
const { Client, requests, constants } = require('dcmjs-dimse');

const { port, cert, key, ca, ...versions } = JSON.parse(process.argv[2]);
const read = (path) => path && fs.readFileSync(path);
const client = new Client();
const echo = new requests.CEchoRequest();
echo.on('response', (response) => {
  console.log(`status ${response.getStatus()}`);
  if (response.getStatus() === constants.Status.Success) process.exitCode = 0;
});
client.addRequest(echo);
client.on('associationRejected', (answer) => console.log('rejected', answer));
client.on('networkError', (error) => console.log('networkError', error.code, error.message));
process.exitCode = 1;
client.send('localhost', port, 'DCMJS', 'INGEST', {
  connectTimeout: 10000,
  associationTimeout: 10000,
  pduTimeout: 10000,
  securityOptions: { cert: read(cert), key: read(key), ca: read(ca), requestCert: true, rejectUnauthorized: true, ...versions },
});
