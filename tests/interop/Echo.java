// A C-ECHO by Java's own TLS, with the key store and trust store that dcm4che would be given.
import java.io.DataInputStream;
import java.io.FileInputStream;
import java.io.OutputStream;
import java.security.KeyStore;
import java.util.Arrays;
import java.util.HexFormat;
import javax.net.ssl.KeyManagerFactory;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSocket;
import javax.net.ssl.TrustManagerFactory;

public class Echo {
    static byte[] pdu(DataInputStream in) throws Exception {
        byte[] head = in.readNBytes(6);
        byte[] body = in.readNBytes(java.nio.ByteBuffer.wrap(head, 2, 4).getInt());
        byte[] all = Arrays.copyOf(head, 6 + body.length);
        System.arraycopy(body, 0, all, 6, body.length);
        return all;
    }

    static KeyStore store(String path, char[] password) throws Exception {
        KeyStore store = KeyStore.getInstance("PKCS12");
        try (FileInputStream file = new FileInputStream(path)) {
            store.load(file, password);
        }
        return store;
    }

    // Arguments: port, key store, trust store, password, protocol, then PDUs to send in hexadecimal digits.
    public static void main(String[] arguments) throws Exception {
        char[] password = arguments[3].toCharArray();
        KeyManagerFactory keys = KeyManagerFactory.getInstance(KeyManagerFactory.getDefaultAlgorithm());
        keys.init(store(arguments[1], password), password);
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(store(arguments[2], password));
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(keys.getKeyManagers(), trust.getTrustManagers(), null);
        try (SSLSocket socket = (SSLSocket) context.getSocketFactory().createSocket("localhost", Integer.parseInt(arguments[0]))) {
            socket.setSoTimeout(20000);
            socket.setEnabledProtocols(new String[] {arguments[4]});
            socket.startHandshake();
            System.out.println(socket.getSession().getProtocol() + " " + socket.getSession().getCipherSuite());
            OutputStream out = socket.getOutputStream();
            DataInputStream in = new DataInputStream(socket.getInputStream());
            for (int at = 5; at < arguments.length; at++) {
                out.write(HexFormat.of().parseHex(arguments[at]));
                out.flush();
                System.out.println(HexFormat.of().formatHex(pdu(in)));
            }
        }
    }
}
