// C-STORE by dcmjs-dimse, all files in one association: node store.js PORT FILE…
// Prints a line a file with the status, in order. A file that it cannot put into the transfer syntax which was
// accepted (it has no codecs here) is dropped without a line.
const { Client, requests } = require('dcmjs-dimse');

const [port, ...files] = process.argv.slice(2);
const client = new Client();
for (const file of files) {
  const store = new requests.CStoreRequest(file);
  store.on('response', (response) => console.log(`${file} ${response.getStatus()}`));
  client.addRequest(store);
}
client.on('associationRejected', (answer) => console.log('rejected', answer));
client.on('networkError', (error) => console.log('networkError', error.message));
client.send('127.0.0.1', Number(port), 'DCMJS', 'INGEST', {
  connectTimeout: 10000,
  associationTimeout: 10000,
  pduTimeout: 10000,
});
