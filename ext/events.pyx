"""Events of a PDUParser: control PDUs, command sets and ends of data sets. Events compare by value."""

cimport cython

__all__ = ["Command", "ControlPDU", "DataSet"]


@cython.final
@cython.freelist(8)
cdef class ControlPDU:
    """A complete PDU other than P-DATA-TF: A-ASSOCIATE-RQ/AC/RJ, A-RELEASE-RQ/RP or A-ABORT.

    Attributes:
        pdu_type: 1, 2, 3, 5, 6 or 7 (PS3.8 9.3.2 to 9.3.8).
        data: The PDU with its 6-byte header.
    """

    def __eq__(self, other):
        if not isinstance(other, ControlPDU):
            return NotImplemented
        return self.pdu_type == (<ControlPDU> other).pdu_type and self.data == (<ControlPDU> other).data

    def __repr__(self):
        return f"ControlPDU(pdu_type={self.pdu_type}, length={len(self.data)})"


@cython.final
@cython.freelist(8)
cdef class Command:
    """A complete command set (PS3.7 6.3), joined from its fragments.

    Attributes:
        context_id: Presentation context ID, odd, 1 to 255.
        data: The command set as on the wire, Implicit VR Little Endian.
    """

    def __eq__(self, other):
        if not isinstance(other, Command):
            return NotImplemented
        return self.context_id == (<Command> other).context_id and self.data == (<Command> other).data

    def __repr__(self):
        return f"Command(context_id={self.context_id}, length={len(self.data)})"


@cython.final
@cython.freelist(8)
cdef class DataSet:
    """The end of a data set whose fragments went to the sink of `expect_data_set`.

    Attributes:
        context_id: Presentation context ID, odd, 1 to 255.
        length: Bytes of the data set on the wire, whether the sink took them or not.
        data: The data set, if the sink was memory and large enough. None otherwise.
        too_large: The data set exceeded the limit. Later bytes are not in the sink.
        errno: 0, or the error of the write that failed. Later bytes are not in the sink.
    """

    @property
    def errno(self):
        return self.write_errno

    def __eq__(self, other):
        cdef DataSet that
        if not isinstance(other, DataSet):
            return NotImplemented
        that = <DataSet> other
        return (
            self.context_id == that.context_id
            and self.length == that.length
            and self.data == that.data
            and self.too_large == that.too_large
            and self.write_errno == that.write_errno
        )

    def __repr__(self):
        return (
            f"DataSet(context_id={self.context_id}, length={self.length}, "
            f"too_large={bool(self.too_large)}, errno={self.write_errno})"
        )
